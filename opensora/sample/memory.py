"""The memory plans of sample.py and of commands that only embed texts."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, Optional, Union

import mindspore as ms
import numpy as np

from opensora.checkpoint.files import read_config
from opensora.checkpoint.lazy_tensor import FileTensor
from opensora.cost_model.machine import product_rate, read_rate
from opensora.cost_model.memory_plan import LOADED_LATER, HeldModel, MemoryPlan, ModelFiles, Planner, Rates
from opensora.cost_model.run import Run
from opensora.cost_model.stages import Texts
from opensora.device import Device
from opensora.errors import UserError
from opensora.models import MT5EncoderModel
from opensora.models.stored_weights import BYTES, STORED
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.models.vaes import vae_class
from opensora.parallel.collectives import smallest
from opensora.pipelines.text import texts_per_pass, trimmed_length
from opensora.sample.generation import set_tiling
from opensora.sample.options import SampleOptions
from opensora.utils.logs import logger
from opensora.utils.memory import available_memory, process_memory


def plan_run(
    options: SampleOptions,
    device: Device,
    tokenizer: Tokenizer,
    texts: Optional[Collection[str]],
    size: tuple[int, int],
    lora_parameters: int = 0,
) -> MemoryPlan:
    """Chooses how the run holds its models, and prints the choice if --memory is given or not all of them stay loaded.

    Args:
        tokenizer: of the text encoder.
        texts: all texts that are embedded; None: not known yet.
        size: height and width of the largest frames.
        lora_parameters: elements of the transformer's LoRAs.

    Raises:
        UserError: the run does not fit --memory.
        FileNotFoundError, UserError: unusable weights.
    """
    files = _open(options, device)
    embedded = Texts(options.max_sequence_length)
    if texts is not None:
        embedded = count_texts(tokenizer, texts, options.max_sequence_length)
    transformer_config = options.transformer_class.config_class.from_dict(read_config(options.model_path))
    run = Run(
        transformer_config,
        options.num_frames,
        *size,
        sp_size=device.world_size if options.sp else options.sp_size,
        world_size=device.world_size,
        precision=device.precision,
        max_sequence_length=embedded.length,
        guidance_scale=options.guidance_scale,
        caches_blocks=(options.cache or "").startswith("first_block"),
    )
    on_cpu = device.target == "CPU"
    process = _process(device)
    vae: Any = files["vae"].model if "vae" in files else None
    planner = Planner(
        files,
        process,
        embedded,
        may_stream=device.mode == ms.PYNATIVE_MODE,
        one_at_a_time=options.save_memory,
        decodes_in_chunks=vae is None or options.enable_tiling or vae.config.streams_exactly,
        keeps_freed_memory=on_cpu,
        adapters=lora_parameters * BYTES[STORED[device.dtype]],
    )
    # All processes must come to the same plan, or they would wait for each other in different stages.
    (room,) = smallest([_budget(options.memory, device) - process], device.world_size)
    budget = room + process
    plan = planner.plan(run, budget)
    is_streamed = "transformer" in plan.models and plan.models["transformer"].streamed
    if on_cpu and "transformer" in files and (is_streamed or options.memory):
        rates = smallest([product_rate(), read_rate(_weights_file(files["transformer"]))], device.world_size)
        planner = replace(planner, rates=Rates(*rates))
        plan = planner.plan(run, budget)
    _report(plan, planner, run, budget, options.memory, device)
    return plan


def plan_text_encoder(
    path: Union[str, Path], weights: Optional[str], texts: Texts, memory: Optional[int], device: Device
) -> HeldModel:
    """Chooses how a process holds a text encoder that is its only model, and prints the choice as `plan_run` does.

    Args:
        path: folder of the text encoder.
        weights: one of `opensora.config.memory.WEIGHTS`; None: as stored.
        memory: bytes that the process may use; None: all that are free.
    """
    opened = MT5EncoderModel.open(path)
    planner = Planner(
        {"text_encoder": ModelFiles(opened.model, opened.tensors, device.dtype, weights)},
        _process(device),
        texts,
        may_stream=device.mode == ms.PYNATIVE_MODE,
        keeps_freed_memory=device.target == "CPU",
    )
    budget = _budget(memory, device)
    plan = planner.plan(None, budget)
    _report(plan, planner, None, budget, memory, device)
    return plan.models["text_encoder"]


def count_texts(tokenizer: Tokenizer, texts: Collection[str], max_length: int, batch_size: int = 1) -> Texts:
    """What `pipelines.text.embed_texts` embeds, given the same arguments."""
    longest = max(tokenizer.count(text) for text in texts)
    return Texts(
        trimmed_length(np.arange(max_length) < longest),
        min(batch_size, len(texts)),
        min(texts_per_pass(batch_size), len(texts)),
    )


def _report(
    plan: MemoryPlan, planner: Planner, run: Optional[Run], budget: float, memory: Optional[int], device: Device
) -> None:
    """Prints a plan if --memory is given or a model is streamed; UserError or a warning if it does not fit."""
    fits = plan.fits(budget)
    if memory is not None and not fits:
        raise UserError(f"--memory {memory / 1e9:g}GB: {planner.refusal(run, budget)}")
    if device.is_main and (memory or any(model.streamed for model in plan.models.values())):
        for line in plan.lines():
            logger.info(line)
    if device.is_main and not fits:
        logger.warning(f"{budget / 1e9:.2f} GB of memory are free: {planner.refusal(run, budget)}")


def _process(device: Device) -> float:
    """Bytes of this process without models, on a CPU; nothing of it is in the memory of an NPU."""
    return process_memory() + LOADED_LATER if device.target == "CPU" else 0.0


def _budget(memory: Optional[int], device: Device) -> float:
    """Bytes that this process may use; infinite where that is not known."""
    if memory is not None:
        return memory
    available = available_memory() if device.target == "CPU" else None
    return math.inf if available is None else available / device.world_size


def _weights_file(files: ModelFiles) -> Optional[Path]:
    """The largest file of a model's weights, a shard where there are several; None if they are in no file."""
    paths = {tensor.file.path for tensor in files.tensors.values() if isinstance(tensor, FileTensor)}
    return max(paths, key=lambda path: path.stat().st_size, default=None)


def _open(options: SampleOptions, device: Device) -> dict[str, ModelFiles]:
    """The models that the run uses."""
    weights = options.held_weights()
    opened = {}
    if not options.decode_latents:
        if not options.embeds_on_host(device.target):
            opened["text_encoder"] = MT5EncoderModel.open(options.text_encoder_name_1)
        opened["transformer"] = options.transformer_class.open(
            options.ms_checkpoint or options.model_path, read_config(options.model_path)
        )
    if options.is_inpaint or not options.save_latents:
        opened["vae"] = vae_class(options.ae).open(options.ae_path)
        set_tiling(options, opened["vae"].model)
    return {
        name: ModelFiles(found.model, found.tensors, device.vae_dtype if name == "vae" else device.dtype, weights[name])
        for name, found in opened.items()
    }
