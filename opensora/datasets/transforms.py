"""Sizes and pixels of videos: crops, the resize the published models were trained with, and the range [-1, 1].

Pixels are numpy arrays whose last two axes are height and width: (..., H, W).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from opensora.errors import UserError

BLOCK = 32  # rows of resize's matrix taken at a time


class Box(NamedTuple):
    """A crop: rows top .. top + height, columns left .. left + width."""

    top: int
    left: int
    height: int
    width: int


def limit_area(height: int, width: int, max_hxw: int) -> tuple[int, int]:
    """The size with the same aspect and at most `max_hxw` pixels; smaller sizes stay as they are."""
    if height * width <= max_hxw:
        return height, width
    factor = math.sqrt(max_hxw / (height * width))
    return int(height * factor), int(width * factor)


def short_side(height: int, width: int, size: int) -> tuple[int, int]:
    """The size with the same aspect whose shorter side is `size`."""
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def center_box(height: int, width: int, crop_height: int, crop_width: int) -> Box:
    """The crop in the middle; of an odd margin the smaller half lies before it."""
    if crop_height > height or crop_width > width:
        raise UserError(f"cannot crop {crop_height}x{crop_width} out of {height}x{width}")
    return Box((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def stride_box(height: int, width: int, stride: int) -> Box:
    """The largest crop in the middle whose sides are multiples of `stride`."""
    return center_box(height, width, height // stride * stride, width // stride * stride)


def aspect_box(height: int, width: int, target_height: int, target_width: int) -> Box:
    """The largest crop in the middle with the aspect of the target size; margins halve to even numbers at a half."""
    ratio = target_height / target_width
    if height / width > ratio:
        crop_height, crop_width = int(width * ratio), width
    else:
        crop_height, crop_width = height, int(height / ratio)
    return Box(round((height - crop_height) / 2), round((width - crop_width) / 2), crop_height, crop_width)


def crop(pixels: np.ndarray, box: Box) -> np.ndarray:
    return pixels[..., box.top : box.top + box.height, box.left : box.left + box.width]


def resize(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """(..., H, W) -> (..., height, width), bilinear, antialiased, with aligned corners.

    This is what `torch.nn.functional.interpolate` does with antialias=True and align_corners=True together, which is
    neither of the ordinary variants. uint8 gives uint8, rounded; all else gives float32.
    """
    resized = np.ascontiguousarray(pixels, dtype=np.float32)
    if height != pixels.shape[-2]:
        blocks = [weights @ resized[..., rows, :] for rows, weights in _blocks(pixels.shape[-2], height)]
        resized = np.concatenate(blocks, axis=-2)
    if width != pixels.shape[-1]:
        blocks = [resized[..., columns] @ weights.T for columns, weights in _blocks(pixels.shape[-1], width)]
        resized = np.concatenate(blocks, axis=-1)
    if pixels.dtype == np.uint8:
        return np.rint(resized).astype(np.uint8)
    return resized


@lru_cache(maxsize=64)
def _blocks(size_in: int, size_out: int) -> list[tuple[slice, np.ndarray]]:
    """The weights in blocks of `BLOCK` rows: what each reads of the input, and its part of the matrix.

    A filter is a few samples wide, so nearly all of the matrix is zeros: this is ten times less work for large frames.
    """
    weights = _weights(size_in, size_out)
    blocks = []
    for start in range(0, size_out, BLOCK):
        block = weights[start : start + BLOCK]
        read = np.flatnonzero(block.any(axis=0))
        inputs = slice(read[0], read[-1] + 1)
        blocks.append((inputs, np.ascontiguousarray(block[:, inputs])))
    return blocks


def _weights(size_in: int, size_out: int) -> np.ndarray:
    """(size_out, size_in) float32: row i holds the triangle filter of output sample i, its sum being 1."""
    scale = (size_in - 1) / (size_out - 1) if size_out > 1 else 0.0
    support = max(1.0, scale)
    weights = np.zeros((size_out, size_in))
    for row in range(size_out):
        center = scale * (row + 0.5)
        first = max(0, int(center - support + 0.5))
        last = min(size_in, int(center + support + 0.5))
        taps = np.maximum(0, 1 - np.abs(np.arange(first, last) - center + 0.5) / support)
        weights[row, first:last] = taps / taps.sum()
    return weights.astype(np.float32)


def resize_crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """To exactly (height, width): crops to its aspect, then resizes, up as well as down."""
    return resize(crop(pixels, aspect_box(*pixels.shape[-2:], height, width)), height, width)


def resize_max_area(pixels: np.ndarray, max_hxw: int, stride: int) -> np.ndarray:
    """At most `max_hxw` pixels in the same aspect, then the largest crop to multiples of `stride`."""
    resized = resize(pixels, *limit_area(*pixels.shape[-2:], max_hxw))
    return crop(resized, stride_box(*resized.shape[-2:], stride))


def to_float(pixels: np.ndarray) -> np.ndarray:
    """0 .. 255 (uint8 or float) -> float32 in [-1, 1]."""
    return pixels.astype(np.float32, copy=False) / 255 * 2 - 1


def to_uint8(values: np.ndarray) -> np.ndarray:
    """Floats, about [-1, 1] -> uint8, cut off below the point as the published samplers do."""
    return (np.clip(values / 2 + 0.5, 0, 1) * 255).astype(np.uint8)
