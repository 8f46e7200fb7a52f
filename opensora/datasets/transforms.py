"""Crops, the resize that the published models were trained with, and conversion between uint8 and [-1, 1].

Pixels are numpy arrays with height and width as the last two axes: (..., H, W).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from opensora.errors import UserError

BLOCK = 32  # rows of the resize matrix in one matrix product


class Box(NamedTuple):
    """A crop: rows [top, top + height), columns [left, left + width)."""

    top: int
    left: int
    height: int
    width: int


def limit_area(height: int, width: int, max_hxw: int) -> tuple[int, int]:
    """Scales the size down to at most `max_hxw` pixels with the same aspect ratio; smaller sizes are unchanged."""
    if height * width <= max_hxw:
        return height, width
    factor = math.sqrt(max_hxw / (height * width))
    return int(height * factor), int(width * factor)


def short_side(height: int, width: int, size: int) -> tuple[int, int]:
    """Scales the size to a shorter side of `size` pixels with the same aspect ratio."""
    if height <= width:
        return size, int(size * width / height)
    return int(size * height / width), size


def center_box(height: int, width: int, crop_height: int, crop_width: int) -> Box:
    """Center crop; for an odd margin, the smaller half is above and on the left."""
    if crop_height > height or crop_width > width:
        raise UserError(f"cannot crop {crop_height}x{crop_width} out of {height}x{width}")
    return Box((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def stride_box(height: int, width: int, stride: int) -> Box:
    """The largest center crop whose sides are multiples of `stride`."""
    return center_box(height, width, height // stride * stride, width // stride * stride)


def aspect_box(height: int, width: int, target_height: int, target_width: int) -> Box:
    """The largest center crop with the target's aspect ratio; half margins are rounded half to even."""
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

    Matches `torch.nn.functional.interpolate` with both antialias=True and align_corners=True, an unusual combination.
    uint8 input gives rounded uint8; any other type gives float32.
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
    """The resize matrix in blocks of `BLOCK` rows: (range of input samples, weights for that range).

    A filter spans a few samples, so the matrix is a narrow band. Skipping the zeros is ten times less work for large
    frames.
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
    """(size_out, size_in) float32: row i is the triangle filter of output sample i, normalized to a sum of 1."""
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
    """Center-crops to the aspect ratio of (height, width), then resizes to that size, up or down."""
    in_height, in_width = pixels.shape[-2:]
    return resize(crop(pixels, aspect_box(in_height, in_width, height, width)), height, width)


def resize_max_area(pixels: np.ndarray, max_hxw: int, stride: int) -> np.ndarray:
    """Resizes to at most `max_hxw` pixels, then center-crops the sides to multiples of `stride`."""
    height, width = limit_area(pixels.shape[-2], pixels.shape[-1], max_hxw)
    return crop(resize(pixels, height, width), stride_box(height, width, stride))


def to_float(pixels: np.ndarray) -> np.ndarray:
    """Levels 0 .. 255 (uint8 or float) -> float32 in [-1, 1]."""
    return pixels.astype(np.float32, copy=False) / 255 * 2 - 1


def to_uint8(values: np.ndarray, rounding: Literal["down", "half_even", "half_up"] = "down") -> np.ndarray:
    """Floats in about [-1, 1] -> uint8 levels; values outside are clipped.

    Args:
        rounding: "down" truncates like the published samplers of Open-Sora-Plan, "half_up" rounds like the scripts of
            Open-Sora v1.1, "half_even" is the inverse of `to_float`.
    """
    levels: np.ndarray = np.clip(values / 2 + 0.5, 0, 1) * 255
    if rounding == "half_even":
        levels = np.rint(levels)
    elif rounding == "half_up":
        levels = levels + 0.5
    return levels.astype(np.uint8)
