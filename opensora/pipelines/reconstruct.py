"""Encodes and decodes videos and images with a VAE, for the examples rec_video, rec_video_folder and rec_image."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

import mindspore as ms
import numpy as np
from mindspore import Tensor

from opensora.config.families import VAES
from opensora.config.options import check_choice
from opensora.datasets import transforms
from opensora.datasets.media import VideoReader, read_image, sample_indices, save_image, write_video
from opensora.errors import UserError
from opensora.metrics import psnr, ssim

MIN_SIZE = 16  # pixels: SSIM uses windows of 11x11


@dataclass(frozen=True)
class ClipSpec:
    """Frames and size of a clip: `num_frames` frames out of the first num_frames * sample_rate.

    Either `height` and `width`: center crop to that aspect ratio, then resize; or `resolution`: resize the shorter
    side to it, then crop a square of `crop_size`, or without crop_size the largest size that the VAE supports.
    """

    num_frames: int
    sample_rate: int = 1
    height: Optional[int] = None
    width: Optional[int] = None
    resolution: Optional[int] = None
    crop_size: Optional[int] = None

    def check(self, ae: str) -> None:
        """Raises UserError, with the nearest valid values, if the VAE `ae` does not support such clips."""
        stride_t, stride_hw = strides(ae)
        if self.sample_rate < 1:
            raise UserError(f"--sample_rate must be 1 or more, not {self.sample_rate}")
        if self.num_frames < 1 or (self.num_frames - 1) % stride_t:
            nearest = _nearest(self.num_frames - 1, stride_t, least=0, offset=1)
            raise UserError(f"--num_frames must be {stride_t}n+1 for {ae}, not {self.num_frames}: use {nearest}")
        if (self.height is None) != (self.width is None):
            raise UserError("--height and --width require each other: give both or neither")
        for name in ("height", "width", "crop_size"):
            value = getattr(self, name)
            if value is not None and (value < MIN_SIZE or value % stride_hw):
                nearest = _nearest(value, stride_hw, least=MIN_SIZE)
                raise UserError(f"--{name} must be a multiple of {stride_hw}, not {value}: use {nearest}")
        least = self.crop_size or MIN_SIZE
        if self.height is None and (self.resolution or 0) < least:
            raise UserError(f"--resolution must be {least} or more, not {self.resolution}")

    def fit(self, pixels: np.ndarray, stride: int) -> np.ndarray:
        """Resizes and crops (..., H, W), 0 .. 255, float32 result. Call `check` first."""
        pixels = pixels.astype(np.float32)
        if self.height is not None and self.width is not None:
            return transforms.resize_crop(pixels, self.height, self.width)
        if self.resolution is not None:
            height, width = pixels.shape[-2:]
            pixels = transforms.resize(pixels, *transforms.short_side(height, width, self.resolution))
        height, width = pixels.shape[-2:]
        if self.crop_size:
            return transforms.crop(pixels, transforms.center_box(height, width, self.crop_size, self.crop_size))
        return transforms.crop(pixels, transforms.stride_box(height, width, stride))


def strides(ae: str) -> tuple[int, int]:
    """The temporal and spatial strides of the VAE with this name.

    Raises:
        UserError: an unknown name.
    """
    check_choice("--ae", ae, VAES)
    return VAES[ae][1:]


def _nearest(value: int, stride: int, least: int, offset: int = 0) -> str:
    below = max(least, value // stride * stride)
    return " or ".join(str(number + offset) for number in sorted({below, max(least, below + stride)}))


def read_clip(path: Union[str, Path], clip: ClipSpec, ae: str) -> np.ndarray:
    """Reads a clip for the VAE `ae`: float32 (3, T, H, W) in [-1, 1].

    Raises:
        UserError: a damaged video, or too few frames.
    """
    stride = strides(ae)[1]
    with VideoReader(path) as reader:
        reader.check()
        frames = [
            clip.fit(chunk.transpose(0, 3, 1, 2), stride)  # (t, 3, h, w)
            for chunk in reader.chunks(sample_indices(clip.num_frames, clip.sample_rate).tolist())
        ]
    return transforms.to_float(np.concatenate(frames).transpose(1, 0, 2, 3))


def read_image_clip(path: Union[str, Path], short_size: int, ae: str) -> np.ndarray:
    """Reads an image as a clip of one frame (3, 1, H, W), resized by its shorter side and cropped to the VAE's stride.

    Raises:
        UserError: a file that is not an image, or a size too small.
    """
    if short_size < MIN_SIZE:
        raise UserError(f"--short_size must be {MIN_SIZE} or more, not {short_size}")
    pixels = ClipSpec(1, resolution=short_size).fit(read_image(path).transpose(2, 0, 1)[None], strides(ae)[1])
    return transforms.to_float(pixels.transpose(1, 0, 2, 3))


class Reconstructor:
    """Encodes and decodes with a VAE, and measures the seconds that each takes.

    Latents are the posterior's mode, so that reconstructions are deterministic.
    """

    def __init__(self, vae):
        self.vae = vae
        self.encode_seconds = self.decode_seconds = 0.0

    def __call__(self, videos: np.ndarray) -> Iterator[np.ndarray]:
        """(B, 3, T, H, W) in [-1, 1] -> uint8 (B, t, H, W, 3), in chunks along time."""
        start = time.perf_counter()
        latents = self.vae.encode(Tensor(videos, ms.float32)).mode()
        latents.asnumpy()  # synchronizes with the device
        self.encode_seconds += time.perf_counter() - start
        chunks = self.vae.decode_chunks(latents) if self.vae.use_tiling else self._decode_at_once(latents)
        while True:
            start = time.perf_counter()
            chunk = next(chunks, None)
            if chunk is None:
                return
            values = chunk.astype(ms.float32).asnumpy()
            self.decode_seconds += time.perf_counter() - start
            yield transforms.to_uint8(values.transpose(0, 2, 3, 4, 1))

    def _decode_at_once(self, latents: Tensor) -> Iterator[Tensor]:
        yield self.vae.decode(latents)


class Scores:
    """PSNR and SSIM of the added frames, each averaged over frames.

    Both sides are uint8 frames: the cropped and resized input, and the decoded output before video compression.
    """

    def __init__(self):
        self.values: dict[str, list[float]] = {"psnr": [], "ssim": []}

    def add(self, originals: np.ndarray, frames: np.ndarray) -> None:
        """Adds frames; both arguments are uint8 (T, H, W, 3)."""
        for original, frame in zip(originals, frames):
            a, b = (image.transpose(2, 0, 1) / np.float32(255) for image in (original, frame))
            self.values["psnr"].append(float(psnr(a, b)))
            self.values["ssim"].append(float(ssim(a, b)))

    def means(self) -> dict[str, float]:
        return {name: float(np.mean(values)) for name, values in self.values.items()}


def reconstruct_video(
    reconstruct: Reconstructor, video: np.ndarray, rec_path: Union[str, Path], fps: float, grid: bool = False
) -> dict[str, float]:
    """Writes the reconstruction of a clip (3, T, H, W), with `grid` beside the original. Returns the scores."""
    originals, scores, done = transforms.to_uint8(video.transpose(1, 2, 3, 0), "half_even"), Scores(), 0
    with write_video(rec_path, fps) as write:
        for (frames,) in reconstruct(video[None]):
            original = originals[done : done + len(frames)]
            write(np.concatenate([original, frames], axis=2) if grid else frames)
            scores.add(original, frames)
            done += len(frames)
    return scores.means()


def reconstruct_image(reconstruct: Reconstructor, image: np.ndarray, rec_path: Union[str, Path]) -> dict[str, float]:
    """Writes the reconstruction of a clip of one frame (3, 1, H, W) as an image. Returns the scores."""
    scores = Scores()
    (frames,) = [chunk[0] for chunk in reconstruct(image[None])]
    save_image(rec_path, frames[0])
    scores.add(transforms.to_uint8(image.transpose(1, 2, 3, 0), "half_even"), frames)
    return scores.means()
