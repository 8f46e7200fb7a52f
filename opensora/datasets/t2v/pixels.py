"""Reads the pixels of an annotated sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional

import numpy as np

from opensora.datasets import transforms
from opensora.datasets.media import BATCH, VideoReader, read_image
from opensora.datasets.t2v.options import T2VDataOptions
from opensora.datasets.t2v.selection import Shape
from opensora.datasets.temporal_sampling import resample, sample_frames, sample_window
from opensora.errors import UserError


def read_pixels(
    path: Path, record: dict, shape: Shape, options: T2VDataOptions, rng: np.random.Generator
) -> np.ndarray:
    """The sample as float32 (3, T, H, W) in [-1, 1], of the given shape.

    Args:
        record: see `SampleIndex.record`.
        rng: draws the start of the clip, if the video is longer.

    Raises:
        FileNotFoundError: no such file.
        UserError: the file cannot be read, or does not match its annotation.
    """
    pixels = np.empty((shape.frames, 3, shape.height, shape.width), np.float32)
    position = 0
    for frames in _frames(path, record, options, rng):
        frames = _crop(frames, record.get("crop"), path)
        frames = np.ascontiguousarray(frames.transpose(0, 3, 1, 2))  # (t, H, W, 3) -> (t, 3, H, W)
        frames = _resize(frames, options)
        if frames.shape[-2:] != shape[1:]:
            raise UserError(
                f"{path}: gives {'x'.join(map(str, frames.shape[-2:]))} instead of "
                f"{shape.height}x{shape.width}: the annotated resolution is wrong"
            )
        pixels[position : position + len(frames)] = frames
        position += len(frames)
    if position != shape.frames:
        raise UserError(f"{path}: {position} frames at the training rate instead of {shape.frames}")
    pixels *= 2
    pixels -= 1
    return pixels.swapaxes(0, 1)


def _frames(path: Path, record: dict, options: T2VDataOptions, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The sample's frames, uint8 (t, H, W, 3), in chunks: a whole clip at full size can take gigabytes."""
    if "num_frames" not in record:
        yield read_image(path)[None]
        return
    if options.is_older:
        window = sample_window(record["num_frames"], options.num_frames, options.sample_rate, rng.random())
        numbers = record["start"] + window
    else:
        available = resample(record["start"], record["num_frames"], record["fps"], options.train_fps)
        numbers = sample_frames(
            available, options.num_frames, rng, options.speed_factor, options.ae_stride_t, options.sp_size
        )
    with VideoReader(path) as reader:
        yield from reader.chunks(numbers, BATCH)


def _crop(frames: np.ndarray, crop: Optional[Sequence[int]], path: Path) -> np.ndarray:
    """`crop` is [left, right, top, bottom] in pixels of the file."""
    if crop is None:
        return frames
    left, right, top, bottom = crop
    height, width = frames.shape[1:3]
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise UserError(f"{path}: the crop {list(crop)} is outside of {height}x{width}")
    return frames[:, top:bottom, left:right]


def _resize(frames: np.ndarray, options: T2VDataOptions) -> np.ndarray:
    """uint8 -> float32 in [0, 1], resized without rounding."""
    frames = np.divide(frames, 255, dtype=np.float32)
    if options.force_resolution:
        return transforms.resize_crop(frames, options.max_height, options.max_width)
    return transforms.resize_max_area(frames, options.area_limit, options.hw_stride)
