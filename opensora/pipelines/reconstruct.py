"""Videos and images through a VAE and back: what the examples rec_video, rec_video_folder and rec_image share."""

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
from opensora.metrics.peak_signal import psnr
from opensora.metrics.structural import ssim

SMALLEST = 16  # pixels: SSIM looks through windows of 11x11


@dataclass(frozen=True)
class Clip:
    """What is taken from a video: `num_frames` frames out of the first num_frames * sample_rate, and their size.

    Either `height` and `width`: crop to that aspect in the middle, then resize; or `resolution`: resize the shorter
    side to it, then cut out a square of `crop_size`, or without crop_size the largest part the VAE takes.
    """

    num_frames: int
    sample_rate: int = 1
    height: Optional[int] = None
    width: Optional[int] = None
    resolution: Optional[int] = None
    crop_size: Optional[int] = None

    def check(self, ae: str) -> None:
        """UserError unless the VAE of this name takes such clips; the message names the nearest it takes."""
        stride_t, stride_hw = strides(ae)
        if self.sample_rate < 1:
            raise UserError(f"--sample_rate must be 1 or more, not {self.sample_rate}")
        if self.num_frames < 1 or (self.num_frames - 1) % stride_t:
            nearest = _neighbours(self.num_frames - 1, stride_t, least=0, offset=1)
            raise UserError(f"--num_frames must be {stride_t}n+1 for {ae}, not {self.num_frames}: take {nearest}")
        if (self.height is None) != (self.width is None):
            raise UserError("--height and --width belong together: give both or neither")
        for name in ("height", "width", "crop_size"):
            value = getattr(self, name)
            if value is not None and (value < SMALLEST or value % stride_hw):
                nearest = _neighbours(value, stride_hw, least=SMALLEST)
                raise UserError(f"--{name} must be a multiple of {stride_hw}, not {value}: take {nearest}")
        least = self.crop_size or SMALLEST
        if self.height is None and (self.resolution or 0) < least:
            raise UserError(f"--resolution must be {least} or more, not {self.resolution}")

    def fit(self, pixels: np.ndarray, stride: int) -> np.ndarray:
        """(..., H, W), 0 .. 255 -> float32 of the size asked for."""
        pixels = pixels.astype(np.float32)
        if self.height is not None:
            return transforms.resize_crop(pixels, self.height, self.width)
        pixels = transforms.resize(pixels, *transforms.short_side(*pixels.shape[-2:], self.resolution))
        size = pixels.shape[-2:]
        box = (
            transforms.center_box(*size, self.crop_size, self.crop_size)
            if self.crop_size
            else transforms.stride_box(*size, stride)
        )
        return transforms.crop(pixels, box)


def strides(ae: str) -> tuple[int, int]:
    """The strides of a VAE in time and space, known by its name.

    Raises:
        UserError: an unknown name.
    """
    check_choice("--ae", ae, VAES)
    return VAES[ae][1:]


def _neighbours(value: int, stride: int, least: int, offset: int = 0) -> str:
    below = max(least, value // stride * stride)
    return " or ".join(str(number + offset) for number in sorted({below, max(least, below + stride)}))


def read_clip(path: Union[str, Path], clip: Clip, ae: str) -> np.ndarray:
    """The clip as the VAE named `ae` takes it: float32 (3, T, H, W) in [-1, 1].

    Raises:
        UserError: a damaged video, or one of too few frames.
    """
    stride = strides(ae)[1]
    with VideoReader(path) as reader:
        reader.check()
        frames = [
            clip.fit(chunk.transpose(0, 3, 1, 2), stride)  # (t, 3, h, w)
            for chunk in reader.chunks(sample_indices(clip.num_frames, clip.sample_rate))
        ]
    return transforms.to_float(np.concatenate(frames).transpose(1, 0, 2, 3))


def read_picture(path: Union[str, Path], short_size: int, ae: str) -> np.ndarray:
    """An image as a clip of one frame (3, 1, H, W): shorter side resized, then cut to multiples of the VAE's stride.

    Raises:
        UserError: a file that is no image, or a size too small.
    """
    if short_size < SMALLEST:
        raise UserError(f"--short_size must be {SMALLEST} or more, not {short_size}")
    pixels = Clip(1, resolution=short_size).fit(read_image(path).transpose(2, 0, 1)[None], strides(ae)[1])
    return transforms.to_float(pixels.transpose(1, 0, 2, 3))


def as_frames(video: np.ndarray) -> np.ndarray:
    """A clip of `read_clip`, (3, T, H, W) -> uint8 (T, H, W, 3), rounded to the nearest level."""
    return np.rint((video.transpose(1, 2, 3, 0) + 1) * 127.5).astype(np.uint8)


class Reconstructor:
    """A VAE, there and back, with the seconds each way has taken so far.

    Latents are the posterior's mean, so that the same clip always gives the same reconstruction.
    """

    def __init__(self, vae, dtype=ms.float32):
        self.vae, self.dtype = vae, dtype
        self.encode_seconds = self.decode_seconds = 0.0

    def __call__(self, videos: np.ndarray) -> Iterator[np.ndarray]:
        """(B, 3, T, H, W) in [-1, 1] -> uint8 (B, t, H, W, 3), piece by piece along time."""
        start = time.perf_counter()
        latents = self.vae.encode(Tensor(videos, self.dtype)).mode()
        latents.asnumpy()  # waits for the device
        self.encode_seconds += time.perf_counter() - start
        pieces = self.vae.decode_chunks(latents) if self.vae.use_tiling else self._whole(latents)
        while True:
            start = time.perf_counter()
            piece = next(pieces, None)
            if piece is None:
                return
            values = piece.astype(ms.float32).asnumpy()
            self.decode_seconds += time.perf_counter() - start
            yield transforms.to_uint8(values.transpose(0, 2, 3, 4, 1))

    def _whole(self, latents: Tensor) -> Iterator[Tensor]:
        yield self.vae.decode(latents)


class Scores:
    """PSNR and SSIM of the frames added so far, each the mean over frames.

    Both sides are the uint8 frames: the input as it was cut and resized, the output as it was decoded,
    before a video format loses more.
    """

    def __init__(self):
        self.values: dict[str, list[float]] = {"psnr": [], "ssim": []}

    def add(self, originals: np.ndarray, frames: np.ndarray) -> None:
        """uint8 (T, H, W, 3) twice."""
        for original, frame in zip(originals, frames):
            a, b = (image.transpose(2, 0, 1) / np.float32(255) for image in (original, frame))
            self.values["psnr"].append(float(psnr(a, b)))
            self.values["ssim"].append(float(ssim(a, b)))

    def means(self) -> dict[str, float]:
        return {name: float(np.mean(values)) for name, values in self.values.items()}


def reconstruct_video(
    reconstruct: Reconstructor, video: np.ndarray, rec_path: Union[str, Path], fps: float, grid: bool = False
) -> dict[str, float]:
    """Writes the reconstruction of a clip (3, T, H, W); with `grid` the original beside it. Returns the scores."""
    originals, scores, done = as_frames(video), Scores(), 0
    with write_video(rec_path, fps) as write:
        for (frames,) in reconstruct(video[None]):
            shown = originals[done : done + len(frames)]
            write(np.concatenate([shown, frames], axis=2) if grid else frames)
            scores.add(shown, frames)
            done += len(frames)
    return scores.means()


def reconstruct_image(reconstruct: Reconstructor, picture: np.ndarray, rec_path: Union[str, Path]) -> dict[str, float]:
    """Writes the reconstruction of a clip of one frame (3, 1, H, W) as an image. Returns the scores."""
    scores = Scores()
    (frames,) = [piece[0] for piece in reconstruct(picture[None])]
    save_image(rec_path, frames[0])
    scores.add(as_frames(picture), frames)
    return scores.means()
