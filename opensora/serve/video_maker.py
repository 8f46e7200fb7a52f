"""Makes the videos of jobs with models that stay loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, Optional

from opensora.checkpoint.files import read_config
from opensora.cost_model.memory_plan import MemoryPlan
from opensora.device import Device
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.parallel.groups import VideoGroups, video_groups
from opensora.pipelines.base import VideoPipeline
from opensora.pipelines.denoise import DenoiseSettings
from opensora.pipelines.monitor import Cancelled
from opensora.pipelines.published import make_scheduler
from opensora.sample.job import (
    build_pipeline,
    encode_condition,
    frame_size,
    noise_seed,
    read_loras,
    texts_to_embed,
    write_sample,
)
from opensora.sample.memory import plan_run
from opensora.sample.options import SampleOptions
from opensora.sample.outputs import Sample, plan_samples, write_metadata
from opensora.sample.prompt_files import read_inputs
from opensora.serve.job_monitor import JobMonitor
from opensora.utils.memory import available_memory
from opensora.utils.stopwatch import Stopwatch

SPARE_PLANS = 2  # free memory, in multiples of what a run takes, with which a second transformer stays loaded


class Held(NamedTuple):
    """A pipeline whose models stay loaded, the plan that says how, and the processes that share each video.

    `work`: pixels of all frames of the largest video that the plan is for.
    """

    pipeline: VideoPipeline
    plan: MemoryPlan
    groups: VideoGroups
    work: int


class VideoMaker:
    """Makes one video at a time. Text encoder and autoencoder are shared by the transformers of both tasks."""

    def __init__(self, device: Device):
        self.device = device
        self.held: dict[str, Held] = {}  # by the path of the transformer

    def make(
        self,
        options: SampleOptions,
        report: Callable[..., None],
        make_monitor: Callable[[Optional[Callable]], JobMonitor],
        is_cancelled: Callable[[], bool],
    ) -> tuple[dict[str, float], int]:
        """Makes the one video of a job, in the file that sample.py gives it. An existing one is kept.

        Args:
            report: called with each `stage`.
            make_monitor: makes the monitor of the denoising from a decoder for previews.
            is_cancelled: asked between stages.

        Returns:
            The seconds of each stage, and the number of calls of the transformer.

        Raises:
            Cancelled: as the monitor or `is_cancelled` demand.
            UserError, OSError: unusable files, or a LoRA of another model.
        """
        (sample,) = plan_samples(options, read_inputs(options))
        times = Stopwatch()
        if sample.path.exists():
            return {}, 0

        def stage(name: str) -> Any:
            if is_cancelled():
                raise Cancelled
            report(stage=name)
            return times(name)

        with stage("load"):
            height, width = frame_size(options, sample)
            held = self._hold(options, sample, (height, width))
            pipeline, one_at_a_time = held.pipeline, held.plan.one_at_a_time
            self._adapt(pipeline, options)
            if not one_at_a_time:
                for model in (pipeline.text_encoder, pipeline.transformer, pipeline.vae):
                    model.get()
        with stage("encode"):
            text = pipeline.embed_prompt(sample.prompt, options.guidance_scale, options.max_sequence_length)
            if one_at_a_time:
                pipeline.text_encoder.release()
            conditioning = encode_condition(options, pipeline, sample)
            if one_at_a_time:
                pipeline.vae.release()
        with stage("denoise"):
            settings = DenoiseSettings.of(options.cache, options.guidance_interval, held.groups, self.device.compiles)
            previews = None if one_at_a_time or pipeline.vae.get().stream.is_shared else pipeline.decode
            latents = pipeline.denoise(
                text,
                options.num_frames,
                height,
                width,
                options.num_sampling_steps,
                options.guidance_scale,
                noise_seed(options, sample),
                progress=False,
                conditioning=conditioning,
                settings=replace(settings, monitor=make_monitor(previews)),
            )
        if one_at_a_time:
            pipeline.transformer.release()
        with stage("decode"):
            if self.device.is_main:
                seed, weights = noise_seed(options, sample), held.plan.weights
                write_metadata(sample, options, self.device, seed, sample.prompt, weights, pipeline)
            write_sample(options, pipeline, sample, lambda: latents, self.device.is_main)
        return dict(times.seconds), pipeline.model_calls

    def _hold(self, options: SampleOptions, sample: Sample, size: tuple[int, int]) -> Held:
        """The pipeline of a job's transformer. Models are loaded again if the job takes more memory than planned."""
        work = options.num_frames * size[0] * size[1]
        known = self.held.get(options.model_path)
        if known is not None and known.work >= work:
            return known
        if known is not None or self._lacks_room(options):
            self._release_all()
        tokenizer = Tokenizer(options.text_encoder_name_1)
        plan = plan_run(options, self.device, tokenizer, texts_to_embed(options, [sample]), size)
        groups = self._groups(options)
        pipeline = build_pipeline(options, self.device, groups, tokenizer, plan)
        for other in self.held.values():
            pipeline.text_encoder, pipeline.vae = other.pipeline.text_encoder, other.pipeline.vae
        self.held[options.model_path] = Held(pipeline, plan, groups, work)
        return self.held[options.model_path]

    def _lacks_room(self, options: SampleOptions) -> bool:
        """Whether the models in memory have to go before those of another transformer are loaded."""
        if not self.held or self.device.target != "CPU" or options.memory is not None:
            return bool(self.held)
        available = available_memory()
        needed = max(held.plan.peak for held in self.held.values())
        streams = any(model.streamed for held in self.held.values() for model in held.plan.models.values())
        return streams or (available is not None and available < SPARE_PLANS * needed)

    def _release_all(self) -> None:
        for held in self.held.values():
            for model in (held.pipeline.text_encoder, held.pipeline.transformer, held.pipeline.vae):
                model.release()
        self.held.clear()

    def _adapt(self, pipeline: VideoPipeline, options: SampleOptions) -> None:
        """Gives the pipeline the settings of a job."""
        scheduler = options.scheduler_arguments()
        pipeline.scheduler = make_scheduler(options.generation, options.sample_method, **scheduler)
        pipeline.prompt_template, pipeline.negative_prompt = options.prompt_template, options.negative_prompt
        loras = read_loras(options)
        if loras.loaded or pipeline.loras.loaded:
            pipeline.loras.loaded.clear()
            pipeline.loras.loaded.update(loras.loaded)
            pipeline.loras.apply(pipeline.transformer.get())

    def _groups(self, options: SampleOptions) -> VideoGroups:
        """All processes of this worker share each video: the two rows of guidance, then the tokens."""
        heads = options.transformer_class.config_class.from_dict(read_config(options.model_path)).num_attention_heads
        world = self.device.world_size
        cfg_size = 2 if world % 2 == 0 else 1
        return video_groups(self.device, world // cfg_size, cfg_size, heads)
