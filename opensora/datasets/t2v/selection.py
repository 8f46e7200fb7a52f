"""Selects the annotated samples to train on, and their shape."""

from __future__ import annotations

from typing import NamedTuple, Union

import numpy as np

from opensora.datasets import transforms
from opensora.datasets.t2v.entries import check_entry
from opensora.datasets.t2v.options import T2VDataOptions
from opensora.datasets.temporal_sampling import resample, usable_length

MAX_ASPECT = 2.0  # height / width or width / height; with force_resolution, relative to the requested aspect ratio
MAX_DURATION = 5.0  # in durations of a sample; longer videos rarely show a single scene
DEFAULT_FPS = 24  # for annotations without `fps`

# Reasons to exclude a sample, in the order of the checks.
REASONS = (
    "faulty entry",
    "no caption",
    "no resolution",
    "smaller than hw_stride",
    "fewer pixels than min_hxw",
    "too elongated",
    "no num_frames",
    "too long",
    "too short",
)


class Shape(NamedTuple):
    """Shape of a sample as the model receives it."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


def select(item: dict, options: T2VDataOptions, rng: np.random.Generator) -> Union[Shape, str]:
    """The shape of an annotated sample, or one of `REASONS` to exclude it.

    Args:
        rng: decides which short videos are excluded, with probability `drop_short_ratio`.

    Raises:
        UserError: a faulty entry, see `check_entry`.
    """
    return select_entry(check_entry(item), options, rng)


def select_entry(entry: dict, options: T2VDataOptions, rng: np.random.Generator) -> Union[Shape, str]:
    """As `select`, for an entry returned by `check_entry`."""
    if entry["cap"] is None:
        return "no caption"
    if options.is_older:
        return _older_shape(entry, options)
    if entry["resolution"] is None:
        return "no resolution"
    size = _frame_size(entry["resolution"]["height"], entry["resolution"]["width"], options)
    if isinstance(size, str):
        return size
    frames = _frame_count(entry, options, rng) if "num_frames" in entry else 1
    return frames if isinstance(frames, str) else Shape(frames, *size)


def _older_shape(entry: dict, options: T2VDataOptions) -> Union[Shape, str]:
    """As `select_entry`, for a sample of v1.0 or v1.1: any aspect; of `frame_idx` the first frame counts alone."""
    size = options.max_height, options.max_width
    if "num_frames" not in entry:
        return Shape(1, *size)
    if not entry["num_frames"]:
        return "no num_frames"
    if not entry["is_range"] and entry["num_frames"] < options.num_frames:
        return "too short"
    return Shape(options.num_frames, *size)


def max_frames(fps: float, options: T2VDataOptions) -> int:
    """The largest number of frames that a video may have."""
    return int(MAX_DURATION * (options.num_frames * fps / options.train_fps * options.speed_factor))


def _frame_size(height: int, width: int, options: T2VDataOptions) -> Union[tuple[int, int], str]:
    if options.force_resolution:
        aspect = options.max_height / options.max_width
        elongated = not aspect / MAX_ASPECT <= height / width <= aspect * MAX_ASPECT
        return "too elongated" if elongated else (options.max_height, options.max_width)
    limited = transforms.limit_area(height, width, options.area_limit)
    box = transforms.stride_box(*limited, options.hw_stride)
    if not box.height or not box.width:
        return "smaller than hw_stride"
    if box.height * box.width < options.smallest_area:
        return "fewer pixels than min_hxw"
    if not 1 / MAX_ASPECT <= box.height / box.width <= MAX_ASPECT:
        return "too elongated"
    return box.height, box.width


def _frame_count(entry: dict, options: T2VDataOptions, rng: np.random.Generator) -> Union[int, str]:
    total, fps = entry["num_frames"], entry["fps"] or DEFAULT_FPS
    if not total:
        return "no num_frames"
    if total > max_frames(fps, options):
        if not entry["is_range"]:
            return "too long"
        total = max_frames(fps, options)
    available = len(resample(entry["start"], total, fps, options.train_fps))
    if available < options.num_frames and rng.random() < options.drop_short_ratio:
        return "too short"
    length = usable_length(min(available, options.num_frames), options.num_frames, options.ae_stride_t, options.sp_size)
    return "too short" if length is None else length
