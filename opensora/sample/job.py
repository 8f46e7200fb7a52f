"""A run of sample.py: generates the missing results, in stages or prompt by prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Callable, Optional

import mindspore as ms
from mindspore import Tensor
from tqdm import tqdm

from opensora.checkpoint.files import read_config
from opensora.checkpoint.lora.files import read_lora
from opensora.cost_model.memory_plan import MemoryPlan
from opensora.device import Device
from opensora.errors import UserError
from opensora.models import get_vae
from opensora.models.lora import LoadedLoRA, LoRAs, linear_shapes
from opensora.models.text_encoder.mt5 import MT5EncoderModel
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.parallel.collectives import barrier
from opensora.parallel.groups import VideoGroups, check_sp_size, shard_list, video_groups
from opensora.parallel.sequence import UlyssesSequenceParallel
from opensora.parallel.stream import ContextParallelStream
from opensora.pipelines import OpenSoraInpaintPipeline, OpenSoraPipeline
from opensora.pipelines.base import VideoPipeline
from opensora.pipelines.conditioning import ConditioningFrames, read_conditioning_frames
from opensora.pipelines.denoise import DenoiseSettings
from opensora.pipelines.lazy import LazyModel
from opensora.pipelines.published import cleaned_text, make_scheduler, prompt_text
from opensora.pipelines.step_cache import calls_note
from opensora.pipelines.text import note_if_truncated
from opensora.sample.generation import set_tiling
from opensora.sample.host_text_encoder import HostTextEncoder
from opensora.sample.memory import plan_run
from opensora.sample.options import SampleOptions
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
from opensora.sample.prompt_files import read_inputs
from opensora.sample.refiner import refine_prompts
from opensora.utils.folder_lock import check_free_space, exclusive_folder
from opensora.utils.logs import logger
from opensora.utils.memory import process_memory
from opensora.utils.stopwatch import Stopwatch


def build_pipeline(
    options: SampleOptions,
    device: Device,
    groups: VideoGroups,
    tokenizer: Tokenizer,
    plan: MemoryPlan,
    loras: Optional[LoRAs] = None,
) -> VideoPipeline:
    """The pipeline for a run's options; models load at first use, held as planned, the transformer with the LoRAs."""
    dtype, weights = device.dtype, {**options.held_weights(), **plan.weights}
    pipeline_class: type[VideoPipeline] = OpenSoraInpaintPipeline if options.is_inpaint else OpenSoraPipeline

    def load_transformer():
        transformer = options.transformer_class.from_pretrained(
            options.ms_checkpoint or options.model_path,
            dtype=dtype,
            config=read_config(options.model_path),
            weights=weights["transformer"],
            streamed=plan.models["transformer"].streamed,
        )
        if groups.sequence.size > 1:
            transformer.parallelize(UlyssesSequenceParallel(groups.sequence))
        return transformer

    def load_vae():
        vae = get_vae(options.ae, options.ae_path, device.vae_dtype, weights=weights["vae"])
        set_tiling(options, vae)
        # Graph mode compiles the first, middle and last chunk separately, with different collectives.
        is_graph = device.mode == ms.GRAPH_MODE
        if groups.video.size > 1 and not is_graph and (vae.use_tiling or vae.config.streams_exactly):
            vae.share_decoding(ContextParallelStream(groups.video))
        return vae

    def load_text_encoder():
        if options.embeds_on_host(device.target):
            return HostTextEncoder(options.text_encoder_name_1, weights["text_encoder"], device)
        return MT5EncoderModel.from_pretrained(
            options.text_encoder_name_1,
            dtype=dtype,
            weights=weights["text_encoder"],
            streamed=plan.models["text_encoder"].streamed,
        )

    return pipeline_class(
        loras=loras,
        text_encoder=LazyModel(load_text_encoder),
        tokenizer=tokenizer,
        transformer=LazyModel(load_transformer),
        vae=LazyModel(load_vae),
        scheduler=make_scheduler(options.generation, options.sample_method, **options.scheduler_arguments()),
        prompt_template=options.prompt_template,
        negative_prompt=options.negative_prompt,
        generation=options.generation,
    )


def read_loras(options: SampleOptions) -> LoRAs:
    """The LoRAs of --lora, checked against the layers of the transformer.

    Raises:
        FileNotFoundError: no such file.
        UserError: not a LoRA of this transformer.
    """
    if options.decode_latents or not options.lora:
        return LoRAs()
    shapes = linear_shapes(options.transformer_class.without_weights(**read_config(options.model_path)))
    return LoRAs(
        {
            f"{number}: {spec}": LoadedLoRA(read_lora(spec.path, shapes), spec.scale)
            for number, spec in enumerate(options.lora)
        }
    )


def run(options: SampleOptions, device: Device) -> None:
    """Generates all missing samples; existing ones are kept unless --overwrite is set.

    Under msrun samples are distributed over groups of --sp_size times --cfg_size processes, which share each sample.

    Raises:
        UserError, OSError: unusable prompts or files.
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
    check_sp_size(sp_size, device.world_size, config.num_attention_heads)
    samples = plan_samples(options, read_inputs(options))
    if not options.overwrite:
        for sample in samples:
            check_same_run(sample, options)
    todo = _missing(options, samples)
    if device.is_main and len(todo) < len(samples):
        logger.warning(
            f"{len(samples) - len(todo)} of {len(samples)} results already exist in {options.save_img_path}; "
            f"--overwrite generates them again"
        )
    if device.is_main:
        check_free_space(options.save_img_path, len(todo) * bytes_per_sample(options))
    barrier(device.world_size)  # all processes have seen the same files before the first one is written
    if todo:
        cfg_size = _cfg_size(options, device, device.world_size // sp_size, len(todo))
        _make(options, device, video_groups(device, sp_size, cfg_size, config.num_attention_heads), todo)
    barrier(device.world_size)
    if device.is_main:
        if not options.save_latents:
            write_grids(options, samples)
        print(f"results in {options.save_img_path}")


def _cfg_size(options: SampleOptions, device: Device, groups: int, samples: int) -> int:
    """The processes for the two rows of guidance, given the number of groups that could make samples at a time.

    Without --cfg_size they are two if that leaves no sample waiting.
    """
    if options.cfg_size is not None:
        return options.cfg_size
    if options.guidance_scale <= 1 or groups % 2 or 2 * samples > groups:
        return 1
    if device.is_main:
        logger.info("different processes compute the two rows of guidance (--cfg_size 2)")
    return 2


def _make(options: SampleOptions, device: Device, groups: VideoGroups, todo: Sequence[Sample]) -> None:
    """Generates samples with models that are held as planned."""
    group = groups.video
    tokenizer = Tokenizer(options.text_encoder_name_1)
    sizes = {sample: frame_size(options, sample) for sample in todo}
    loras = read_loras(options)
    texts = texts_to_embed(options, todo)
    plan = plan_run(options, device, tokenizer, texts, max(sizes.values()), loras.parameters)
    options = replace(options, save_memory=plan.one_at_a_time)
    pipeline = build_pipeline(options, device, groups, tokenizer, plan, loras)
    times, model_calls = Stopwatch(), []
    if options.decode_latents:
        _check_latents(todo)
    else:
        # An interrupted run with one model at a time leaves latents, which need not be denoised again.
        keeps_latents = options.save_memory and not options.overwrite
        pending = [sample for sample in todo if not (keeps_latents and sample.latents_path.exists())]
        barrier(device.world_size)  # all processes have seen the same latents
        mine = shard_list(pending, group, groups.lockstep)
        model_calls = _denoise_all(options, device, groups, pipeline, plan, mine, sizes, times)
        barrier(device.world_size)  # all latents exist before the next stage
    if (options.decode_latents or options.save_memory) and not options.save_latents:
        mine = shard_list(todo, group, groups.lockstep)
        for sample, keep in tqdm(mine, desc="decoding", unit="video", disable=not device.is_main):
            writes = keep and group.is_first
            with times("decode"):
                write_sample(options, pipeline, sample, lambda: Tensor(read_latents(sample.latents_path)), writes)
            if writes and not options.decode_latents:
                sample.latents_path.unlink()
    if device.is_main:
        _log_times(times, options.num_sampling_steps)
        if model_calls:
            mean = sum(model_calls) / len(model_calls)
            logger.info(calls_note(mean, len(pipeline.scheduler.timesteps)))


def _log_times(times: Stopwatch, steps: int) -> None:
    """Logs the seconds of each stage and of a step on average, and the memory that the process used."""
    seconds = dict(times.seconds)
    if "denoise" in seconds:
        seconds["step"] = seconds["denoise"] / times.counts["denoise"] / steps
    shown = ", ".join(f"{stage} {value:.1f} s" for stage, value in seconds.items())
    peak = process_memory(peak=True)
    if shown:
        logger.info(f"time: {shown}" + (f"; peak memory {peak / 1e9:.2f} GB" if peak else ""))


def _missing(options: SampleOptions, samples: Sequence[Sample]) -> list[Sample]:
    def finished(sample: Sample) -> bool:
        return (sample.latents_path if options.save_latents else sample.path).exists()

    return [sample for sample in samples if options.overwrite or not finished(sample)]


def _check_latents(todo: Sequence[Sample]) -> None:
    for sample in todo:
        if not sample.latents_path.exists():
            raise FileNotFoundError(f"{sample.latents_path}: no latents to decode; generate them with --save_latents")


def _denoise_all(
    options: SampleOptions,
    device: Device,
    groups: VideoGroups,
    pipeline: VideoPipeline,
    plan: MemoryPlan,
    mine: Sequence[tuple[Sample, bool]],
    sizes: Mapping[Sample, tuple[int, int]],
    times: Stopwatch,
) -> list[int]:
    """Denoises every sample. Latents are decoded immediately, or written to files for a later stage.

    Returns:
        The number of calls of the transformer for each sample.
    """
    model_calls: list[int] = []
    if not mine:
        return model_calls
    prompts = list(dict.fromkeys(sample.prompt for sample, _ in mine))
    refined = dict(zip(prompts, prompts))
    if options.caption_refiner:
        refined = refine_prompts(options.caption_refiner, prompts, options.seed, device.target)
    if groups.video.is_first:
        _note_truncated_texts(options, pipeline, refined.values())
    with times("load"):
        pipeline.text_encoder.get()
    with times("encode"):
        embedded = pipeline.embed_prompts(list(refined.values()), options.guidance_scale, options.max_sequence_length)
    texts = dict(zip(refined, embedded))
    if options.save_memory:
        pipeline.text_encoder.release()
    conditioning = {sample: encode_condition(options, pipeline, sample) for sample, _ in mine}
    if options.save_memory:
        pipeline.vae.release()
    with times("load"):
        pipeline.transformer.get()
    settings = DenoiseSettings.of(options.cache, options.guidance_interval, groups, device.compiles)
    for sample, keep in tqdm(mine, desc="videos", unit="video", disable=not device.is_main):
        seed = noise_seed(options, sample)
        with times("denoise"):
            latents = pipeline.denoise(
                texts[sample.prompt],
                options.num_frames,
                *sizes[sample],
                options.num_sampling_steps,
                options.guidance_scale,
                seed,
                progress=device.is_main,
                conditioning=conditioning[sample],
                settings=settings,
                timesteps=options.chosen_timesteps or None,
            )
        model_calls.append(pipeline.model_calls)
        writes = keep and groups.video.is_first
        if writes:
            write_metadata(sample, options, device, seed, refined[sample.prompt], plan.weights, pipeline)
        if not (options.save_latents or options.save_memory):
            with times("decode"):
                write_sample(options, pipeline, sample, lambda: latents, writes)
        elif writes:
            write_latents(sample.latents_path, latents.asnumpy())
    if options.save_memory:
        pipeline.transformer.release()
    return model_calls


def texts_to_embed(options: SampleOptions, samples: Sequence[Sample]) -> Optional[list[str]]:
    """All texts that the samples need embedded; None if a refiner has not written them yet."""
    if options.caption_refiner or options.decode_latents:
        return None
    prompts = dict.fromkeys(sample.prompt for sample in samples)
    generation, template = options.generation, options.prompt_template
    texts = [prompt_text(generation, template, prompt) for prompt in prompts]
    return [cleaned_text(generation, options.negative_prompt), *texts]


def _note_truncated_texts(options: SampleOptions, pipeline: VideoPipeline, prompts: Iterable[str]) -> None:
    texts = [pipeline.text_of(prompt) for prompt in prompts]
    negative = cleaned_text(pipeline.generation, pipeline.negative_prompt)
    for text in dict.fromkeys([*texts, negative] if options.guidance_scale > 1 else texts):
        note_if_truncated(
            pipeline.tokenizer, text, options.max_sequence_length, "raise --max_sequence_length or shorten it"
        )


def noise_seed(options: SampleOptions, sample: Sample) -> tuple[int, int, int]:
    return options.seed, sample.index, sample.number


def frame_size(options: SampleOptions, sample: Sample) -> tuple[int, int]:
    """Height and width; reads the conditioning frames, so that bad files are reported before any sampling."""
    if options.is_inpaint and not options.decode_latents:
        return _read_conditioning_frames(options, sample).size
    return options.height, options.width


def _read_conditioning_frames(options: SampleOptions, sample: Sample) -> ConditioningFrames:
    return read_conditioning_frames(
        sample.conditioning_paths,
        options.num_frames,
        options.mask_type,
        (options.height, options.width) if options.crop_for_hw else None,
        options.max_hxw,
        options.condition_frames or None,
        noise_seed(options, sample),
    )


def encode_condition(options: SampleOptions, pipeline: VideoPipeline, sample: Sample) -> Optional[Tensor]:
    if not isinstance(pipeline, OpenSoraInpaintPipeline):
        return None
    frames = _read_conditioning_frames(options, sample)
    return pipeline.encode_condition(frames, options.noise_strength, noise_seed(options, sample))


def write_sample(
    options: SampleOptions, pipeline: VideoPipeline, sample: Sample, read_latents: Callable[[], Tensor], writes: bool
) -> None:
    """Decodes and writes a sample; with a shared decoder the processes that do not write also decode."""
    if writes:
        chunks = pipeline.decode(read_latents())
        if options.keep_condition:
            chunks = _read_conditioning_frames(options, sample).keep(chunks)
        write_frames(sample.path, chunks, options.fps)
    elif pipeline.vae.get().stream.is_shared:
        for _ in pipeline.decode(read_latents()):
            pass
