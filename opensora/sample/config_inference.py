"""Inference from a config file: builds its components and generates a video or an image for every prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np

from opensora.config.acceleration import WHOLE_RANGE, parse_cache
from opensora.config.families import FAMILIES, PLAN, check_family
from opensora.config.lora import parse_loras
from opensora.datasets.media import save_image, write_video
from opensora.datasets.transforms import to_uint8
from opensora.device import Device
from opensora.errors import UserError
from opensora.parallel.collectives import barrier
from opensora.pipelines.denoise import DenoiseSettings
from opensora.pipelines.lazy import LazyModel
from opensora.pipelines.long_video import VideoPrompt, make_long_video
from opensora.pipelines.lora import LoRAMixin
from opensora.pipelines.references import read_reference
from opensora.pipelines.sizes import check_size as check_plan_size
from opensora.pipelines.stdit import ClipSize
from opensora.pipelines.step_cache import calls_note
from opensora.pipelines.t2v import OpenSoraPipeline
from opensora.pipelines.text import note_if_truncated
from opensora.pipelines.text_conditions import class_numbers
from opensora.registry import (
    MODEL,
    SCHEDULER,
    TEXT_ENCODER,
    VAE,
    build,
    build_stdit_pipeline,
    check_component,
    check_folders,
    check_size,
)
from opensora.sample.inference_options import (
    InferenceOptions,
    Request,
    check_single_clips,
    plan_requests,
    without_effect,
)
from opensora.utils.folder_lock import check_free_space, exclusive_folder
from opensora.utils.logs import logger

REMEDY = "raise model_max_length of text_encoder, if the model allows it, or shorten the text"
NEEDS_CONDITIONING_FRAMES = "inference-long.py needs a model with conditioning frames: STDiT2-XL/2, not {}"
HAS_NO_FRAME_RATE = "divide_fps: the model {} is not conditioned on a frame rate; leave it out"
NOISE, ENCODER, REFERENCE = 0, 1, 2  # purpose of random numbers, a component of their seed


class RequestSampler(Protocol):
    """Generates samples of requests with one model family."""

    batch_size: int  # requests per batch

    def __init__(self, config: Mapping[str, Any], options: InferenceOptions, device: Device, long: bool): ...

    @staticmethod
    def check(config: Mapping[str, Any], options: InferenceOptions, requests: Sequence[Request], long: bool) -> None:
        """Raises UserError for options that the model family does not support."""

    def note_truncated_texts(self, request: Request) -> None:
        """Prints notes to stderr for texts that are too long for the text encoder."""

    def sample(self, requests: Sequence[Request], number: int) -> Iterator[np.ndarray]:
        """Yields the requests' `number`-th samples in chunks along time, uint8 (n, t, H, W, 3)."""


def run(config: Mapping[str, Any], device: Device, long: bool) -> None:
    """Generates all outputs of a config of `parse_configs`.

    Under msrun the processes share the prompts. The noise depends only on the seed and the prompt's index.

    Args:
        long: support references and multiple clips, as inference-long.py does.

    Raises:
        UserError, OSError: invalid config or files; reported before models are loaded if possible.
    """
    if not long:
        check_single_clips(config)
    options = InferenceOptions.from_config(config)
    check_family(config, training=False)
    for kind in (MODEL, VAE, TEXT_ENCODER, SCHEDULER):
        check_component(config[kind], kind)
    requests = plan_requests(config, options, long)
    for note in without_effect(options, requests) if device.is_main else ():
        logger.warning(f"{note}")
    sampler_class: type[RequestSampler] = PlanSampler if config["model"]["type"] == PLAN else STDiTSampler
    sampler_class.check(config, options, requests, long)
    with exclusive_folder(options.save_dir, device.is_main):
        if device.is_main:
            samples = [(request, number) for request in requests for number in range(options.num_sample)]
            missing = sum(not _is_done(options, *sample) for sample in samples)
            check_free_space(options.save_dir, options.bytes_per_sample * missing)
        barrier(device.world_size)  # the first process locks the folder before the others start
        check_folders(config)
        if FAMILIES[config["model"]["type"]].fixed_size:
            check_size(config, (options.num_frames, *options.image_size))
        _sample_all(sampler_class(config, options, device, long), options, requests, device)
        barrier(device.world_size)  # and unlocks it after all have finished


def _sample_all(
    sampler: RequestSampler, options: InferenceOptions, requests: Sequence[Request], device: Device
) -> None:
    batches = [requests[start : start + sampler.batch_size] for start in range(0, len(requests), sampler.batch_size)]
    for batch in batches[device.rank :: device.world_size]:
        for request in batch:
            sampler.note_truncated_texts(request)
        for number in range(options.num_sample):
            todo = [request for request in batch if not _is_done(options, request, number)]
            if todo:
                write(options, todo, number, sampler.sample(todo, number))


def _is_done(options: InferenceOptions, request: Request, number: int) -> bool:
    """Only results named by their prompts are kept; others are overwritten."""
    return options.prompt_as_path and options.path(request, number).exists()


def write(options: InferenceOptions, requests: Sequence[Request], number: int, chunks: Iterable[np.ndarray]) -> None:
    """Writes a batch of videos concurrently, or images."""
    paths = [options.path(request, number) for request in requests]
    if options.num_frames == 1:
        (images,) = chunks
        for path, image in zip(paths, images):
            save_image(path, image[0])
    else:
        with ExitStack() as stack:
            writers = [stack.enter_context(write_video(path, options.video_fps)) for path in paths]
            for chunk in chunks:
                for writer, frames in zip(writers, chunk):
                    writer(frames)
    for path in paths:
        print(f"saved {path}", flush=True)


class STDiTSampler:
    """Open-Sora v1.0 and v1.1."""

    def __init__(self, config: Mapping[str, Any], options: InferenceOptions, device: Device, long: bool):
        self.options, self.long, self.is_main = options, long, device.is_main
        self.size = ClipSize(options.num_frames, *options.image_size, options.model_fps)
        self.pipeline = build_stdit_pipeline(
            config, device.dtype, (options.num_frames, *options.image_size), device.vae_dtype
        )
        load_loras(self.pipeline, options)
        self.pipeline.cache, self.pipeline.compiles = parse_cache(options.cache), device.compiles
        self.batch_size = options.batch_size
        _, _, *latent_size = self.pipeline.latent_shape(self.size.video)
        output_size = [count * stride for count, stride in zip(latent_size, self.pipeline.vae.patch_size[1:])]
        if output_size != list(options.image_size) and device.is_main:
            logger.warning(
                f"image_size {tuple(options.image_size)} is cropped to {tuple(output_size)}: height and width "
                f"must be multiples of {self.pipeline.vae.patch_size[1]}"
            )

    @staticmethod
    def check(config: Mapping[str, Any], options: InferenceOptions, requests: Sequence[Request], long: bool) -> None:
        """Raises UserError for what the model or the scheduler does not support, and for texts that are no classes."""
        build(config["scheduler"], SCHEDULER)
        model, text_encoder = config["model"]["type"], config["text_encoder"]
        if tuple(options.guidance_interval) != WHOLE_RANGE:
            raise UserError(f"guidance_interval: {model} does not support it; leave it out")
        family = FAMILIES[model]
        if long and not family.conditioning_frames:
            raise UserError(NEEDS_CONDITIONING_FRAMES.format(model))
        if family.fixed_size and options.divide_fps:
            raise UserError(HAS_NO_FRAME_RATE.format(model))
        if text_encoder["type"] == "classes":
            classes = build(text_encoder, TEXT_ENCODER).num_classes
            class_numbers([text for request in requests for text in request.texts], classes)
        has_conditioning = options.loop > 1 or any(request.groups for request in requests)
        if long and has_conditioning and config["scheduler"]["type"] != "iddpm":
            raise UserError(
                f"scheduler type {config['scheduler']['type']!r} does not support conditioning frames; references and "
                f"loop > 1 need 'iddpm'"
            )

    def sample(self, requests: Sequence[Request], number: int) -> Iterator[np.ndarray]:
        noise = SeededNoise(self.options.seed, [request.index for request in requests], number)
        return map(to_frames, self._decoded_clips(requests, noise))  # map keeps no reference to the previous clip

    def note_truncated_texts(self, request: Request) -> None:
        for text in dict.fromkeys(request.texts):
            self.pipeline.text_encoder.note_if_truncated(text, REMEDY)

    def _decoded_clips(self, requests: Sequence[Request], noise: SeededNoise) -> Iterator[np.ndarray]:
        if self.long:
            prompts = [VideoPrompt(request.texts, self._references(request), request.groups) for request in requests]
            return make_long_video(
                self.pipeline, prompts, self.size, noise, self.options.condition_frame_length or 0, self.is_main
            )
        shape = (len(requests), *self.pipeline.latent_shape(self.size.video))
        text = self.pipeline.embed([request.texts[0] for request in requests])
        latents = self.pipeline.sample(
            text, self.size, noise.latents(0, shape), None, lambda k: noise.step(0, k, shape), self.is_main
        )
        return iter([self.pipeline.decode(latents)])

    def _references(self, request: Request) -> list[np.ndarray]:
        """Latents (C, t, h, w) of each reference, encoded in chunks."""
        latents = []
        for i, path in enumerate(request.references):
            rng = np.random.default_rng([self.options.seed, request.index, REFERENCE, i])
            chunks = []
            for pixels in read_reference(path, *self.options.image_size):
                channels, _, height, width = self.pipeline.latent_shape(self.size.video)
                noise = rng.standard_normal((1, channels, pixels.shape[1], height, width), dtype=np.float32)
                chunks.append(self.pipeline.encode(pixels[None], noise)[0])
            latents.append(np.concatenate(chunks, 1))
        return latents


class PlanSampler:
    """Open-Sora-Plan: one prompt at a time, with the results of sample.py for the same seed."""

    batch_size = 1

    def __init__(self, config: Mapping[str, Any], options: InferenceOptions, device: Device, long: bool):
        self.options, self.is_main = options, device.is_main
        if options.batch_size > 1 and device.is_main:
            logger.warning(
                f"batch_size {options.batch_size} has no effect: {config['model']['type']} samples one prompt at a time"
            )
        self.guided_sampler = build(config["scheduler"], SCHEDULER)
        text_encoder = build(config["text_encoder"], TEXT_ENCODER, dtype=device.dtype)
        self.max_length = text_encoder.max_length
        self.pipeline = OpenSoraPipeline(
            LazyModel(lambda: text_encoder.encoder),
            text_encoder.tokenizer,
            LazyModel(lambda: build(config["model"], MODEL, dtype=device.dtype)),
            LazyModel(lambda: build(config["vae"], VAE, dtype=device.vae_dtype)),
            self.guided_sampler.scheduler,
        )
        load_loras(self.pipeline, options)
        self.settings = DenoiseSettings.of(options.cache, options.guidance_interval, None, device.compiles)

    @staticmethod
    def check(config: Mapping[str, Any], options: InferenceOptions, requests: Sequence[Request], long: bool) -> None:
        """Raises UserError for options that the model does not support."""
        check_plan_size(options.num_frames, *options.image_size)
        if long:
            raise UserError(NEEDS_CONDITIONING_FRAMES.format(config["model"]["type"]))
        if options.divide_fps:
            raise UserError(HAS_NO_FRAME_RATE.format(config["model"]["type"]))

    def note_truncated_texts(self, request: Request) -> None:
        text = self.pipeline.prompt_template.replace("{}", request.prompt)
        note_if_truncated(self.pipeline.tokenizer, text, self.max_length, REMEDY)

    def sample(self, requests: Sequence[Request], number: int) -> Iterator[np.ndarray]:
        (request,) = requests
        scale, steps = self.guided_sampler.cfg_scale, self.guided_sampler.num_sampling_steps
        text = self.pipeline.embed_prompt(request.prompt, scale, self.max_length)
        latents = self.pipeline.denoise(
            text,
            self.options.num_frames,
            *self.options.image_size,
            steps,
            scale,
            (self.options.seed, request.index, number),
            progress=self.is_main,
            settings=self.settings,
        )
        if self.options.cache and self.is_main:
            logger.info(calls_note(self.pipeline.model_calls, len(self.pipeline.scheduler.timesteps)))
        return self.pipeline.decode(latents)


def load_loras(pipeline: LoRAMixin, options: InferenceOptions) -> None:
    """Adds the LoRAs of the options to the pipeline."""
    for number, spec in enumerate(parse_loras(options.lora)):
        pipeline.load_lora(spec.path, spec.scale, f"{number}: {spec}")


class SeededNoise:
    """The `NoiseSource` of a batch; the noise of a prompt does not depend on the other prompts in the batch."""

    def __init__(self, seed: int, indices: Sequence[int], number: int):
        self.keys = [[seed, index, number] for index in indices]
        self.generators: list[np.random.Generator] = []

    def latents(self, clip: int, shape: tuple) -> np.ndarray:
        self.generators = self._generators(clip, NOISE)
        return _normal(self.generators, shape)

    def step(self, clip: int, k: int, shape: tuple) -> np.ndarray:
        return _normal(self.generators, shape)

    def encoder(self, clip: int, shape: tuple) -> np.ndarray:
        return _normal(self._generators(clip, ENCODER), shape)

    def _generators(self, clip: int, purpose: int) -> list[np.random.Generator]:
        return [np.random.default_rng([*key, clip, purpose]) for key in self.keys]


def _normal(generators: Sequence[np.random.Generator], shape: tuple) -> np.ndarray:
    return np.stack([generator.standard_normal(shape[1:], dtype=np.float32) for generator in generators])


def to_frames(values: np.ndarray) -> np.ndarray:
    """(n, 3, t, H, W), about [-1, 1] -> uint8 (n, t, H, W, 3), rounded as in the scripts of Open-Sora."""
    return to_uint8(values.transpose(0, 2, 3, 4, 1), "half_up")
