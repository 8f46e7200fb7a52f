"""Frames as the networks of the metrics take them. The published evaluations differ in this, and so do their numbers.

Frames are uint8 (N, H, W, 3); results are float32 (N, 3, h, w).
"""

from __future__ import annotations

import math
from typing import Callable

import numpy as np
from PIL import Image

from opensora.datasets import transforms
from opensora.datasets.transforms import Box
from opensora.utils.interpolation import bicubic_weights, interpolate, linear_weights

SIZE = 224
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def clip_openai(frames: np.ndarray, size: int = SIZE) -> np.ndarray:
    """As OpenAI's CLIP: Pillow's antialiased bicubic resize to a shorter side of `size`, then a center crop."""
    return _clip_pillow(frames, size, _rounded_center_box)


def clip_transformers(frames: np.ndarray, size: int = SIZE) -> np.ndarray:
    """As CLIPImageProcessor of transformers: differs from `clip_openai` in the rounding of the crop's offset."""
    return _clip_pillow(frames, size, transforms.center_box)


def clip_vbench(frames: np.ndarray, size: int = SIZE) -> np.ndarray:
    """As VBench for videos: bicubic without antialiasing on floats, which may leave the range of pixels."""
    pixels = _channels_first(frames)
    height, width = transforms.short_side(pixels.shape[-2], pixels.shape[-1], size)
    resized = interpolate(pixels, bicubic_weights(pixels.shape[-2], height), bicubic_weights(pixels.shape[-1], width))
    return _normalize(transforms.crop(resized, _rounded_center_box(height, width, size, size)), CLIP_MEAN, CLIP_STD)


def dino_vbench(frames: np.ndarray, size: int = SIZE) -> np.ndarray:
    """As VBench for DINO: bilinear without antialiasing to a shorter side of `size`, no crop."""
    pixels = _channels_first(frames)
    height, width = transforms.short_side(pixels.shape[-2], pixels.shape[-1], size)
    resized = interpolate(pixels, linear_weights(pixels.shape[-2], height), linear_weights(pixels.shape[-1], width))
    return _normalize(resized, IMAGENET_MEAN, IMAGENET_STD)


def i3d(video: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Bilinear without antialiasing to a shorter side of `size`, then a center crop.

    The published protocols of FVD share it, except that "videogpt" rounds floats down to pixels first.

    Args:
        video: (T, H, W, 3), uint8, or floats in [0, 1].

    Returns:
        (3, T, size, size) in [-1, 1].
    """
    pixels = _channels_first(video)
    if video.dtype == np.uint8:
        pixels = pixels / np.float32(255)
    height, width = pixels.shape[-2:]
    scale = size / min(height, width)
    height, width = (size if side == min(height, width) else math.ceil(side * scale) for side in (height, width))
    resized = interpolate(pixels, linear_weights(pixels.shape[-2], height), linear_weights(pixels.shape[-1], width))
    cropped = transforms.crop(resized, transforms.center_box(height, width, size, size))
    return (cropped.transpose(1, 0, 2, 3) - 0.5) * 2


CLIP_PREPROCESSING: dict[str, Callable[..., np.ndarray]] = {
    "openai": clip_openai,
    "transformers": clip_transformers,
    "vbench": clip_vbench,
}


def _clip_pillow(frames: np.ndarray, size: int, center_box: Callable[..., Box]) -> np.ndarray:
    height, width = transforms.short_side(frames.shape[1], frames.shape[2], size)
    resized = [np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)) for frame in frames]
    pixels = _channels_first(np.stack(resized))
    return _normalize(transforms.crop(pixels, center_box(height, width, size, size)), CLIP_MEAN, CLIP_STD)


def _rounded_center_box(height: int, width: int, crop_height: int, crop_width: int) -> Box:
    """Center crop as torchvision's: offsets are half of the margin, rounded half to even."""
    return Box(round((height - crop_height) / 2), round((width - crop_width) / 2), crop_height, crop_width)


def _channels_first(frames: np.ndarray) -> np.ndarray:
    return frames.transpose(0, 3, 1, 2).astype(np.float32)


def _normalize(pixels: np.ndarray, mean: tuple, std: tuple) -> np.ndarray:
    columns = [np.array(values, np.float32).reshape(3, 1, 1) for values in (mean, std)]
    return (pixels / np.float32(255) - columns[0]) / columns[1]
