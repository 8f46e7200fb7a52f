"""Resizes frames and images to the size of a training sample, as the weights of Open-Sora v1.1 were trained.

Videos are resized bilinearly, without antialiasing and without rounding; images with Pillow's filters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Callable, Optional

import numpy as np
from PIL import Image

from opensora.datasets.transforms import Box, center_box, crop


def resize_crop_video(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (t, H, W, 3) -> float32 (t, 3, height, width), 0 .. 255: resizes to cover the size, then center-crops."""
    rows, columns = _covering(frames.shape[1], frames.shape[2], height, width)
    return crop(bilinear(frames.transpose(0, 3, 1, 2), rows, columns), center_box(rows, columns, height, width))


def resize_crop_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """As `resize_crop_video` for an image, uint8 (H, W, 3) -> uint8 (3, height, width), bicubic."""
    rows, columns = _covering(image.shape[0], image.shape[1], height, width)
    resized = Image.fromarray(image).resize((columns, rows), Image.Resampling.BICUBIC)
    return crop(np.asarray(resized).transpose(2, 0, 1), _rounded_box(rows, columns, height, width))


def center_video(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 (t, H, W, 3) -> float32 (t, 3, height, height): resizes the shorter side to `height`, then center-crops.

    `width` must equal `height`.
    """
    scale = height / min(frames.shape[1:3])
    rows, columns = (int(side * scale + 1e-6) for side in frames.shape[1:3])
    resized = bilinear(frames.transpose(0, 3, 1, 2), rows, columns, scale)
    return crop(resized, _rounded_box(rows, columns, height, width))


def center_image(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """As `center_video` for an image, uint8 (H, W, 3) -> uint8 (3, height, height); large images are halved first."""
    resized = Image.fromarray(image)
    while min(resized.size) >= 2 * height:
        resized = resized.resize((resized.width // 2, resized.height // 2), Image.Resampling.BOX)
    scale = height / min(resized.size)
    resized = resized.resize((round(resized.width * scale), round(resized.height * scale)), Image.Resampling.BICUBIC)
    box = center_box(resized.height, resized.width, height, width)
    return crop(np.asarray(resized).transpose(2, 0, 1), box)


# `transform_name` of a config -> functions for videos and for images.
TRANSFORMS: Mapping[str, tuple[Callable, Callable]] = {
    "resize_crop": (resize_crop_video, resize_crop_image),
    "center": (center_video, center_image),
}


def bilinear(pixels: np.ndarray, height: int, width: int, scale: Optional[float] = None) -> np.ndarray:
    """(..., H, W) -> float32 (..., height, width), bilinear without antialiasing; corners are not aligned.

    Args:
        scale: output size / input size, if it differs from the ratio of the integer sizes.
    """
    first, second, weight = _taps(pixels.shape[-2], height, scale)
    rows = pixels[..., first, :] * (1 - weight)[:, None] + pixels[..., second, :] * weight[:, None]
    first, second, weight = _taps(pixels.shape[-1], width, scale)
    return rows[..., first] * (1 - weight) + rows[..., second] * weight


def _taps(size_in: int, size_out: int, scale: Optional[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each output sample: the indices of its two neighboring input samples, and the weight of the second."""
    step = size_in / size_out if scale is None else 1 / scale
    centers = np.maximum((np.arange(size_out) + 0.5) * step - 0.5, 0)
    first = np.minimum(centers.astype(int), size_in - 1)
    return first, np.minimum(first + 1, size_in - 1), (centers - first).astype(np.float32)


def _covering(height: int, width: int, target_height: int, target_width: int) -> tuple[int, int]:
    """The smallest size with the same aspect ratio that contains the target."""
    by_height, by_width = target_height / height, target_width / width
    if by_height > by_width:
        return target_height, round(width * by_height)
    return round(height * by_width), target_width


def _rounded_box(height: int, width: int, crop_height: int, crop_width: int) -> Box:
    """Center crop; half margins are rounded half to even."""
    return Box(round((height - crop_height) / 2), round((width - crop_width) / 2), crop_height, crop_width)
