"""The memory of the published models, without their files: the plan of a run, and a table of sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Optional

from opensora.checkpoint.lazy_tensor import LazyTensor
from opensora.config.families import PLAN
from opensora.cost_model.cards import Card, step_seconds
from opensora.cost_model.compute import flops
from opensora.cost_model.machine import product_rate
from opensora.cost_model.memory_plan import EFFICIENCY, LOADED_LATER, MemoryPlan, ModelFiles, Planner
from opensora.cost_model.run import Run, load_config
from opensora.cost_model.stages import AUTOENCODER, TEXT_ENCODER, Texts
from opensora.errors import UserError
from opensora.models.stored_weights import TYPES

PROCESS_BYTES = 460e6 + LOADED_LATER  # of sample.py on a CPU, measured
SIZES = ((1, 256, 256), (1, 640, 640), (17, 256, 256), (29, 480, 640), (93, 352, 640), (93, 640, 640))


class Unread(LazyTensor):
    """A tensor of which only the shape and the type are known."""

    def __init__(self, shape: Sequence[int], dtype: str):
        self.shape, self.dtype = tuple(shape), dtype


@lru_cache(maxsize=4)
def _models(config: Any) -> dict[str, Any]:
    """The published models without weights, with the transformer of a configuration."""
    from opensora.models import MT5EncoderModel, OpenSoraT2V_v1_3, WFVAEModel

    return {
        "text_encoder": MT5EncoderModel.without_weights(**TEXT_ENCODER),
        "transformer": OpenSoraT2V_v1_3.without_weights(**config.to_dict()),
        "vae": WFVAEModel.without_weights(**AUTOENCODER),
    }


def published_planner(run: Run, stored: str, on_cpu: bool, weights: Mapping[str, Optional[str]]) -> Planner:
    """The planner of a run with the published models.

    Args:
        stored: the type of the numbers in the files of the text encoder and the transformer, as `WEIGHTS` names it;
            those of the autoencoder are float32.
        on_cpu: the run is on a CPU, whose memory also holds the process.
        weights: formats by model, None where none is wanted.
    """
    from opensora.device import PRECISIONS

    files = {}
    for name, model in _models(run.config).items():
        kind = "F32" if name == "vae" else TYPES[stored]
        tensors = {parameter: Unread(value.shape, kind) for parameter, value in model.parameters_and_names()}
        files[name] = ModelFiles(model, tensors, PRECISIONS[run.precision], weights.get(name))
    texts = Texts(run.max_sequence_length)
    return Planner(files, PROCESS_BYTES if on_cpu else 0.0, texts, keeps_freed_memory=on_cpu)


def planned(
    run: Run, stored: str, card: Optional[Card], efficiency: float, memory: float, weights: Mapping[str, Optional[str]]
) -> MemoryPlan:
    """The plan of a run, with the seconds of a step: on a card, or with float32 on the CPU of this machine.

    Raises:
        UserError: no plan fits.
    """
    planner = published_planner(run, stored, card is None, weights)
    plan = planner.plan(run, memory)
    if not plan.fits(memory):
        raise UserError(f"--memory {memory / 1e9:g}GB: {planner.refusal(run, memory)}")
    if card is None:
        return plan.with_seconds(flops(run)["sum"] / product_rate() / EFFICIENCY)
    seconds = step_seconds(run, card, efficiency).values()
    known = [value for value in seconds if value is not None]
    return plan.with_seconds(sum(known) if len(known) == len(seconds) else None)


def memory_table() -> str:
    """Peak memory of the published models by size, in GB, as a Markdown table for a CPU and one for NPUs."""
    return "\n\n".join(
        [
            "On a CPU, float32 arithmetic, with the process:",
            _table("fp32", True, ("fp32", "bf16", "q8_0")),
            "On an NPU, 16-bit arithmetic:",
            _table("bf16", False, ("bf16", "q8_0")),
        ]
    )


def _table(precision: str, on_cpu: bool, formats: Sequence[str]) -> str:
    config = load_config(PLAN)
    heads = [f"{stored}, {how}" for stored in formats for how in ("all loaded", "one at a time", "streamed")]
    lines = [["size", *heads], ["---", *("---:" for _ in heads)]]
    for frames, height, width in SIZES:
        run = Run(config, frames, height, width, precision=precision, guidance_scale=7.5)
        cells = []
        for stored in formats:
            plans = list(published_planner(run, stored, on_cpu, {}).plans(run))
            cells += [f"{plan.peak / 1e9:.1f}" for plan in (plans[0], plans[2], plans[3])]
        lines.append([f"{frames}x{height}x{width}", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
