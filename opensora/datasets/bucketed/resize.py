"""Frames and images to the size of a training sample, in the way that the weights of Open-Sora v1.1 know.

Videos are resized bilinearly, without antialiasing and without rounding, images with Pillow's filters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Callable, Optional

import numpy as np
from PIL import Image

from opensora.datasets.transforms import Box, center_box, crop


def resize_crop_video(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (t, H, W, 3) -> float32 (t, 3, height, width), 0 .. 255: as small as covers the size, then its middle."""
    size = _covering(*frames.shape[1:3], height, width)
    return crop(bilinear(frames.transpose(0, 3, 1, 2), *size), center_box(*size, height, width))


def resize_crop_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The same of an image, uint8 (H, W, 3) -> uint8 (3, height, width)."""
    size = _covering(*image.shape[:2], height, width)
    resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)
    return crop(np.asarray(resized).transpose(2, 0, 1), _rounded_box(*size, height, width))


def center_video(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (t, H, W, 3) -> float32 (t, 3, height, width): the shorter side becomes `height`, which is `width`, too."""
    scale = height / min(frames.shape[1:3])
    size = [int(side * scale + 1e-6) for side in frames.shape[1:3]]
    return crop(bilinear(frames.transpose(0, 3, 1, 2), *size, scale=scale), _rounded_box(*size, height, width))


def center_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The same of an image, uint8 (H, W, 3) -> uint8 (3, height, width); large ones are halved first."""
    picture = Image.fromarray(image)
    while min(picture.size) >= 2 * height:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = height / min(picture.size)
    picture = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BICUBIC)
    box = center_box(picture.height, picture.width, height, width)
    return crop(np.asarray(picture).transpose(2, 0, 1), box)


# `transform_name` of a config: for videos and for images.
TRANSFORMS: Mapping[str, tuple[Callable, Callable]] = {
    "resize_crop": (resize_crop_video, resize_crop_image),
    "center": (center_video, center_image),
}


def bilinear(pixels: np.ndarray, height: int, width: int, scale: Optional[float] = None) -> np.ndarray:
    """(..., H, W) -> float32 (..., height, width), without antialiasing; corners are not aligned.

    `scale` says how much larger the output is where that is not the quotient of the sizes, which are whole.
    """
    first, second, weight = _taps(pixels.shape[-2], height, scale)
    rows = pixels[..., first, :] * (1 - weight)[:, None] + pixels[..., second, :] * weight[:, None]
    first, second, weight = _taps(pixels.shape[-1], width, scale)
    return rows[..., first] * (1 - weight) + rows[..., second] * weight


def _taps(size_in: int, size_out: int, scale: Optional[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each output sample the two input samples it lies between, and the second one's weight."""
    step = size_in / size_out if scale is None else 1 / scale
    centers = np.maximum((np.arange(size_out) + 0.5) * step - 0.5, 0)
    first = np.minimum(centers.astype(int), size_in - 1)
    return first, np.minimum(first + 1, size_in - 1), (centers - first).astype(np.float32)


def _covering(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    """The smallest size of the same aspect that the target fits into."""
    by_height, by_width = target_height / height, target_width / width
    if by_height > by_width:
        return target_height, round(width * by_height)
    return round(height * by_width), target_width


def _rounded_box(height: int, width: int, crop_height: int, crop_width: int) -> Box:
    """The crop in the middle; margins halve to even numbers at a half."""
    return Box(round((height - crop_height) / 2), round((width - crop_width) / 2), crop_height, crop_width)
