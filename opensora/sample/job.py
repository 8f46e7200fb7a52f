"""A run of sample.py: what is missing is made, in stages or prompt by prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Callable, Optional

import mindspore as ms
from mindspore import Tensor
from tqdm import tqdm

from opensora.checkpoint.files import read_config
from opensora.device import Device
from opensora.errors import UserError
from opensora.models import get_vae
from opensora.models.text_encoder.mt5 import MT5EncoderModel
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.parallel.collectives import barrier
from opensora.parallel.groups import Group, deal, sequence_group
from opensora.parallel.sequence import UlyssesSequenceParallel
from opensora.parallel.stream import ContextParallelStream
from opensora.pipelines import OpenSoraInpaintPipeline, OpenSoraPipeline
from opensora.pipelines.conditions import Condition, read_condition
from opensora.pipelines.lazy import Part
from opensora.pipelines.text import TextEmbedding, note_if_cut
from opensora.sample.options import SampleOptions, read_inputs
from opensora.sample.outputs import (
    Sample,
    bytes_per_sample,
    check_same_run,
    plan_samples,
    read_latents,
    write_frames,
    write_grids,
    write_latents,
    write_metadata,
)
from opensora.sample.refiner import refine_prompts
from opensora.schedulers import get_scheduler
from opensora.utils.folder_lock import check_free_space, exclusive_folder
from opensora.utils.logs import logger


def build_pipeline(options: SampleOptions, device: Device, group: Group) -> OpenSoraPipeline:
    """The pipeline a run's options describe; models load when they are first used."""
    dtype = device.dtype
    pipeline_class = OpenSoraInpaintPipeline if options.is_inpaint else OpenSoraPipeline

    def load_transformer():
        transformer = pipeline_class.transformer_class.from_pretrained(
            options.ms_checkpoint or options.model_path, dtype=dtype, config=read_config(options.model_path)
        )
        if group.size > 1:
            transformer.parallelize(UlyssesSequenceParallel(group))
        return transformer

    def load_vae():
        vae = get_vae(options.ae, options.ae_path, dtype)
        vae.enable_tiling(options.enable_tiling)
        # Graph mode compiles a first, a later and a last chunk each in its own way, and with it their collectives.
        is_graph = device.mode == ms.GRAPH_MODE
        if group.size > 1 and not is_graph and (vae.use_tiling or vae.config.streams_exactly):
            vae.share_decoding(ContextParallelStream(group))
        return vae

    return pipeline_class(
        text_encoder=Part(lambda: MT5EncoderModel.from_pretrained(options.text_encoder_name_1, dtype=dtype)),
        tokenizer=Tokenizer(options.text_encoder_name_1),
        transformer=Part(load_transformer),
        vae=Part(load_vae),
        scheduler=get_scheduler(options.sample_method, **options.scheduler_arguments()),
        prompt_template=options.prompt_template,
        negative_prompt=options.negative_prompt,
    )


def run(options: SampleOptions, device: Device) -> None:
    """Makes every sample that is not there yet; finished ones stay unless --overwrite.

    Under msrun samples are dealt to groups of --sp_size processes; the processes of a group share each sample.

    Raises:
        UserError, OSError: prompts or files that cannot be used.
    """
    if options.caption_refiner and device.world_size > 1:
        raise UserError(
            "--caption_refiner runs in one process: refine the prompts first with "
            "opensora/sample/caption_refiner.py --output FILE.txt, then use --text_prompt FILE.txt"
        )
    with exclusive_folder(options.save_img_path, device.is_main):
        _run(options, device)


def _run(options: SampleOptions, device: Device) -> None:
    sp_size = device.world_size if options.sp else options.sp_size
    config = options.transformer_class.config_class.from_dict(read_config(options.model_path))
    group = sequence_group(device, sp_size, config.num_attention_heads)
    samples = plan_samples(options, read_inputs(options))
    if not options.overwrite:
        for sample in samples:
            check_same_run(sample, options)
    todo = _missing(options, samples)
    if device.is_main and len(todo) < len(samples):
        logger.info(
            f"{len(samples) - len(todo)} of {len(samples)} results are in {options.save_img_path} already; "
            f"--overwrite makes them again"
        )
    if device.is_main:
        check_free_space(options.save_img_path, len(todo) * bytes_per_sample(options))
    # What a --save_memory run that was stopped between its stages has left need not be denoised again.
    left = [sample for sample in todo if options.save_memory and not options.overwrite and sample.latents_path.exists()]
    barrier(device.world_size)  # all have seen the same files before the first is written
    # Only Ascend has collectives of single groups; elsewhere all groups have to go in step.
    in_step = group.size > 1 and device.target != "Ascend"
    pipeline = build_pipeline(options, device, group)
    if options.decode_latents:
        _check_latents(todo)
    else:
        undone = [sample for sample in todo if sample not in left]
        _make_latents(options, device, group, pipeline, deal(undone, group, in_step))
        barrier(device.world_size)  # whoever made the latents, they are there for the next stage
    if (options.decode_latents or options.save_memory) and not options.save_latents:
        mine = deal(todo, group, in_step)
        for sample, keep in tqdm(mine, desc="decoding", unit="video", disable=not device.is_main):
            writes = keep and group.is_first
            _decode(options, pipeline, sample, lambda: Tensor(read_latents(sample.latents_path)), writes)
            if writes and not options.decode_latents:
                sample.latents_path.unlink()
    barrier(device.world_size)
    if device.is_main:
        if not options.save_latents:
            write_grids(options, samples)
        print(f"results in {options.save_img_path}")


def _missing(options: SampleOptions, samples: Sequence[Sample]) -> list[Sample]:
    def finished(sample: Sample) -> bool:
        return (sample.latents_path if options.save_latents else sample.path).exists()

    return [sample for sample in samples if options.overwrite or not finished(sample)]


def _check_latents(todo: Sequence[Sample]) -> None:
    for sample in todo:
        if not sample.latents_path.exists():
            raise FileNotFoundError(f"{sample.latents_path}: no latents to decode; make them with --save_latents")


def _make_latents(
    options: SampleOptions,
    device: Device,
    group: Group,
    pipeline: OpenSoraPipeline,
    mine: Sequence[tuple[Sample, bool]],
) -> None:
    """Denoises every sample. Latents go to the decoder at once, or to files if a later stage decodes them."""
    if not mine:
        return
    sizes = {sample: _size(options, sample) for sample, _ in mine}
    prompts = list(dict.fromkeys(sample.prompt for sample, _ in mine))
    wording = dict(zip(prompts, prompts))
    if options.caption_refiner:
        wording = refine_prompts(options.caption_refiner, prompts, options.seed, device.target)
    if group.is_first:
        _note_cut_texts(options, pipeline, wording.values())
    texts = dict(_embed(options, pipeline, wording))
    if options.save_memory:
        pipeline.text_encoder.release()
    conditions = {sample: _encode_condition(options, pipeline, sample) for sample, _ in mine}
    if options.save_memory:
        pipeline.vae.release()
    for sample, keep in tqdm(mine, desc="videos", unit="video", disable=not device.is_main):
        seed = _seed(options, sample)
        latents = pipeline.denoise(
            texts[sample.prompt],
            options.num_frames,
            *sizes[sample],
            options.num_sampling_steps,
            options.guidance_scale,
            seed,
            progress=device.is_main,
            condition=conditions[sample],
        )
        writes = keep and group.is_first
        if writes:
            write_metadata(sample, options, device, seed, wording[sample.prompt])
        if not (options.save_latents or options.save_memory):
            _decode(options, pipeline, sample, lambda: latents, writes)
        elif writes:
            write_latents(sample.latents_path, latents.asnumpy())
    if options.save_memory:
        pipeline.transformer.release()


def _embed(
    options: SampleOptions, pipeline: OpenSoraPipeline, wording: dict[str, str]
) -> Iterator[tuple[str, TextEmbedding]]:
    for prompt, refined in wording.items():
        yield prompt, pipeline.embed_prompt(refined, options.guidance_scale, options.max_sequence_length)


def _note_cut_texts(options: SampleOptions, pipeline: OpenSoraPipeline, prompts: Iterable[str]) -> None:
    texts = [pipeline.prompt_template.replace("{}", prompt) for prompt in prompts]
    for text in dict.fromkeys([*texts, pipeline.negative_prompt] if options.guidance_scale > 1 else texts):
        note_if_cut(pipeline.tokenizer, text, options.max_sequence_length, "raise --max_sequence_length or shorten it")


def _seed(options: SampleOptions, sample: Sample) -> tuple[int, int, int]:
    return options.seed, sample.index, sample.number


def _size(options: SampleOptions, sample: Sample) -> tuple[int, int]:
    """Height and width; reads the given frames, so what is wrong with their files shows before anything is made."""
    return _read_condition(options, sample).size if options.is_inpaint else (options.height, options.width)


def _read_condition(options: SampleOptions, sample: Sample) -> Condition:
    size = (options.height, options.width) if options.crop_for_hw else None
    return read_condition(
        sample.condition, options.num_frames, options.mask_type, size, options.max_hxw, seed=_seed(options, sample)
    )


def _encode_condition(options: SampleOptions, pipeline: OpenSoraPipeline, sample: Sample) -> Optional[Tensor]:
    """What `denoise` takes for given frames."""
    if not options.is_inpaint:
        return None
    given = _read_condition(options, sample)
    return pipeline.encode_condition(given, options.noise_strength, _seed(options, sample))


def _decode(
    options: SampleOptions, pipeline: OpenSoraPipeline, sample: Sample, read_latents: Callable[[], Tensor], writes: bool
) -> None:
    """Writes the result; a process that does not write may have to help one that does."""
    if writes:
        chunks = pipeline.decode(read_latents())
        if options.keep_condition:
            chunks = _read_condition(options, sample).keep(chunks)
        write_frames(sample.path, chunks, options.fps)
    elif pipeline.vae.get().stream.is_shared:
        for _ in pipeline.decode(read_latents()):
            pass
