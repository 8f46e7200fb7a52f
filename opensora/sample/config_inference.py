"""Inference by a config file: builds what it names and makes a video or an image for every prompt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np

from opensora.datasets.media import save_image, write_video
from opensora.device import Device
from opensora.errors import UserError
from opensora.models.vaes import VAES
from opensora.parallel.collectives import barrier
from opensora.pipelines.lazy import Part
from opensora.pipelines.long_video import Scene, make_long_video
from opensora.pipelines.references import read_reference
from opensora.pipelines.sizes import check_size
from opensora.pipelines.stdit import ClipSize, STDiTPipeline
from opensora.pipelines.t2v import OpenSoraPipeline
from opensora.pipelines.text import note_if_cut
from opensora.registry import MODEL, SCHEDULER, TEXT_ENCODER, VAE, build, check_family, check_folders, check_part
from opensora.sample.config_job import Job, Request, check_single_clips, plan_requests, without_effect
from opensora.schedulers import SCHEDULERS
from opensora.utils.folder_lock import check_free_space, exclusive_folder
from opensora.utils.logs import logger

# What goes together: the vae, text encoders and schedulers of a model.
FAMILIES = {
    "STDiT2-XL/2": {VAE: ("VideoAutoencoderKL",), TEXT_ENCODER: ("t5", "mt5"), SCHEDULER: ("iddpm", "dpm-solver")},
    "OpenSoraT2V_v1_3-2B/122": {VAE: tuple(VAES), TEXT_ENCODER: ("mt5", "t5"), SCHEDULER: tuple(SCHEDULERS)},
}
REMEDY = "raise model_max_length of text_encoder, if the model allows it, or shorten the text"
NOISE, ENCODER, REFERENCE = 0, 1, 2  # what is drawn, part of its seed


class Maker(Protocol):
    """A pipeline that makes what is requested."""

    batch_size: int  # requests at a time

    def note_cut_texts(self, request: Request) -> None:
        """Says on stderr which texts of the request are too long for the text encoder."""

    def make(self, requests: Sequence[Request], number: int) -> Iterator[np.ndarray]:
        """The requests' `number`-th samples piece by piece in order of time, uint8 (n, t, H, W, 3)."""


def run(config: Mapping[str, Any], device: Device, long: bool) -> None:
    """Makes everything that a config of `parse_configs` asks for; `long` as inference-long.py does.

    Under msrun the processes share the prompts. Noise follows from the seed and the prompt's place alone.

    Raises:
        UserError, OSError: what is wrong with the config or its files, before models are loaded where that is known.
    """
    if not long:
        check_single_clips(config)
    job = Job.of(config)
    check_family(config, FAMILIES)
    for kind in (MODEL, VAE, TEXT_ENCODER, SCHEDULER):
        check_part(config[kind], kind)
    requests = plan_requests(config, job, long)
    for note in without_effect(job, requests) if device.is_main else ():
        logger.warning(note)
    maker_class = STDiTMaker if config["model"]["type"] == "STDiT2-XL/2" else PlanMaker
    maker_class.check(config, job, requests, long)
    with exclusive_folder(job.save_dir, device.is_main):
        if device.is_main:
            check_free_space(
                job.save_dir,
                job.bytes_per_sample
                * sum(not _is_done(job, request, number) for request in requests for number in range(job.num_sample)),
            )
        barrier(device.world_size)  # no process works before the first has the folder
        check_folders(config)
        _make_all(maker_class(config, job, device, long), job, requests, device)
        barrier(device.world_size)  # which it keeps until all are done


def _make_all(maker: Maker, job: Job, requests: Sequence[Request], device: Device) -> None:
    batches = [requests[start : start + maker.batch_size] for start in range(0, len(requests), maker.batch_size)]
    for batch in batches[device.rank :: device.world_size]:
        for request in batch:
            maker.note_cut_texts(request)
        for number in range(job.num_sample):
            todo = [request for request in batch if not _is_done(job, request, number)]
            if todo:
                write(job, todo, number, maker.make(todo, number))


def _is_done(job: Job, request: Request, number: int) -> bool:
    """Only results that are named by their prompts are left as they are."""
    return job.prompt_as_path and job.path(request, number).exists()


def write(job: Job, requests: Sequence[Request], number: int, pieces: Iterable[np.ndarray]) -> None:
    """Writes videos side by side as they come, or images."""
    paths = [job.path(request, number) for request in requests]
    if job.num_frames == 1:
        (images,) = pieces
        for path, image in zip(paths, images):
            save_image(path, image[0])
    else:
        with ExitStack() as stack:
            writers = [stack.enter_context(write_video(path, job.video_fps)) for path in paths]
            for piece in pieces:
                for writer, frames in zip(writers, piece):
                    writer(frames)
    for path in paths:
        print(f"saved {path}", flush=True)


class STDiTMaker:
    """Open-Sora v1.1."""

    def __init__(self, config: Mapping[str, Any], job: Job, device: Device, long: bool):
        self.job, self.long, self.is_main = job, long, device.is_main
        self.size = ClipSize(job.num_frames, *job.image_size, job.model_fps)
        self.pipeline = STDiTPipeline.from_config(config, device.dtype, (job.num_frames, *job.image_size))
        self.batch_size = job.batch_size
        _, _, *latent_size = self.pipeline.latent_shape(self.size.video)
        made = [count * stride for count, stride in zip(latent_size, self.pipeline.vae.patch_size[1:])]
        if made != list(job.image_size) and device.is_main:
            logger.warning(
                f"image_size {tuple(job.image_size)} is cut to {tuple(made)}: height and width of results are "
                f"multiples of {self.pipeline.vae.patch_size[1]}"
            )

    @staticmethod
    def check(config: Mapping[str, Any], job: Job, requests: Sequence[Request], long: bool) -> None:
        """Raises UserError for what the sampler cannot do."""
        build(config["scheduler"], SCHEDULER)
        keeps_frames = job.loop > 1 or any(request.groups for request in requests)
        if long and keeps_frames and config["scheduler"]["type"] != "iddpm":
            raise UserError(
                f"scheduler type {config['scheduler']['type']!r} keeps no frames; references and loop > 1 need 'iddpm'"
            )

    def make(self, requests: Sequence[Request], number: int) -> Iterator[np.ndarray]:
        draws = SeededNoise(self.job.seed, [request.index for request in requests], number)
        return map(to_levels, self._pieces(requests, draws))  # keeps no piece while the next is made

    def note_cut_texts(self, request: Request) -> None:
        encoder = self.pipeline.text_encoder
        for text in dict.fromkeys(request.texts):
            note_if_cut(encoder.tokenizer, text, encoder.max_length, REMEDY)

    def _pieces(self, requests: Sequence[Request], draws: SeededNoise) -> Iterator[np.ndarray]:
        if self.long:
            scenes = [Scene(request.texts, self._references(request), request.groups) for request in requests]
            return make_long_video(
                self.pipeline, scenes, self.size, draws, self.job.condition_frame_length or 0, self.is_main
            )
        shape = (len(requests), *self.pipeline.latent_shape(self.size.video))
        text = self.pipeline.embed([request.texts[0] for request in requests])
        made = self.pipeline.sample(
            text, self.size, draws.latents(0, shape), None, lambda k: draws.step(0, k, shape), self.is_main
        )
        return iter([self.pipeline.decode(made)])

    def _references(self, request: Request) -> list[np.ndarray]:
        """Latents (C, t, h, w) of each, encoded piece by piece."""
        latents = []
        for place, path in enumerate(request.references):
            rng = np.random.default_rng([self.job.seed, request.index, REFERENCE, place])
            pieces = []
            for pixels in read_reference(path, *self.job.image_size):
                channels, _, height, width = self.pipeline.latent_shape(self.size.video)
                noise = rng.standard_normal((1, channels, pixels.shape[1], height, width), dtype=np.float32)
                pieces.append(self.pipeline.encode(pixels[None], noise)[0])
            latents.append(np.concatenate(pieces, 1))
        return latents


class PlanMaker:
    """Open-Sora-Plan: one prompt at a time, as sample.py makes it from the same seed."""

    batch_size = 1

    def __init__(self, config: Mapping[str, Any], job: Job, device: Device, long: bool):
        self.job, self.is_main = job, device.is_main
        if job.batch_size > 1 and device.is_main:
            logger.warning(
                f"batch_size {job.batch_size} has no effect: {config['model']['type']} makes one prompt at a time"
            )
        self.sampler = build(config["scheduler"], SCHEDULER)
        text_encoder = build(config["text_encoder"], TEXT_ENCODER, dtype=device.dtype)
        self.max_length = text_encoder.max_length
        self.pipeline = OpenSoraPipeline(
            Part(lambda: text_encoder.encoder),
            text_encoder.tokenizer,
            Part(lambda: build(config["model"], MODEL, dtype=device.dtype)),
            Part(lambda: build(config["vae"], VAE, dtype=device.dtype)),
            self.sampler.scheduler,
        )

    @staticmethod
    def check(config: Mapping[str, Any], job: Job, requests: Sequence[Request], long: bool) -> None:
        """Raises UserError for what the model cannot do."""
        check_size(job.num_frames, *job.image_size)
        if long:
            raise UserError(
                f"inference-long.py needs a model that can keep frames: STDiT2-XL/2, not {config['model']['type']}"
            )
        if job.divide_fps:
            raise UserError(f"divide_fps: the model {config['model']['type']} is told no frame rate; leave it out")

    def note_cut_texts(self, request: Request) -> None:
        text = self.pipeline.prompt_template.replace("{}", request.prompt)
        note_if_cut(self.pipeline.tokenizer, text, self.max_length, REMEDY)

    def make(self, requests: Sequence[Request], number: int) -> Iterator[np.ndarray]:
        (request,) = requests
        scale, steps = self.sampler.cfg_scale, self.sampler.num_sampling_steps
        text = self.pipeline.embed_prompt(request.prompt, scale, self.max_length)
        latents = self.pipeline.denoise(
            text,
            self.job.num_frames,
            *self.job.image_size,
            steps,
            scale,
            (self.job.seed, request.index, number),
            progress=self.is_main,
        )
        return self.pipeline.decode(latents)


class SeededNoise:
    """NoiseSource of a batch; those of a prompt do not depend on the others in the batch."""

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


def to_levels(values: np.ndarray) -> np.ndarray:
    """(n, 3, t, H, W), about [-1, 1] -> uint8 (n, t, H, W, 3), the nearest as the scripts of Open-Sora write them."""
    return (np.clip(values / 2 + 0.5, 0, 1) * 255 + 0.5).astype(np.uint8).transpose(0, 2, 3, 4, 1)
