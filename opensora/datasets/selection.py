"""Which annotated samples are trained on, and in which shape."""
from __future__ import annotations

from pathlib import PurePosixPath
from typing import NamedTuple, Union

import numpy as np

from opensora.datasets import transforms
from opensora.datasets.frames import resampled, usable_length
from opensora.datasets.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from opensora.datasets.options import T2VDataOptions

MOST_ELONGATED = 2.0  # height over width, or width over height; with force_resolution, of the aspect asked for
TOO_LONG = 5.0        # a video this many times longer than a sample is rarely one scene
DEFAULT_FPS = 24      # of annotations without `fps`

# The reasons to leave a sample out, in the order they are looked at.
REASONS = ("no caption", "no resolution", "smaller than hw_stride", "fewer pixels than min_hxw", "too elongated",
           "no num_frames", "too long", "too short")


class Shape(NamedTuple):
    """A sample as the models get it."""

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


def select(item: dict, options: T2VDataOptions, rng: np.random.Generator) -> Union[Shape, str]:
    """The shape of an annotated sample, or one of `REASONS` to leave it out.

    `rng` decides which of the short videos go, with probability `drop_short_ratio`.

    Raises:
        ValueError: no path, or a file that is neither image nor video.
    """
    is_video = check_is_video(item)
    if item.get("cap") is None:
        return "no caption"
    resolution = item.get("resolution") or {}
    height, width = resolution.get("height"), resolution.get("width")
    if not height or not width or height < 0 or width < 0:
        return "no resolution"
    size = _frame_size(height, width, options)
    if isinstance(size, str):
        return size
    frames = _frame_count(item, options, rng) if is_video else 1
    return frames if isinstance(frames, str) else Shape(frames, *size)


def check_is_video(item: dict) -> bool:
    """Whether the sample is a video, by its suffix; it is an image otherwise."""
    path = item.get("path")
    if not isinstance(path, str) or not path:
        raise ValueError(f"{item!r:.80}: has no `path`")
    suffix = PurePosixPath(path).suffix.lower()
    if suffix not in VIDEO_SUFFIXES + IMAGE_SUFFIXES:
        raise ValueError(f"{path}: neither a video ({', '.join(VIDEO_SUFFIXES)}) nor an image "
                         f"({', '.join(IMAGE_SUFFIXES)}) by its name")
    return suffix in VIDEO_SUFFIXES


def _frame_size(height: int, width: int, options: T2VDataOptions) -> Union[tuple[int, int], str]:
    if options.force_resolution:
        aspect = options.max_height / options.max_width
        elongated = not aspect / MOST_ELONGATED <= height / width <= aspect * MOST_ELONGATED
        return "too elongated" if elongated else (options.max_height, options.max_width)
    box = transforms.stride_box(*transforms.limit_area(height, width, options.max_hxw), options.hw_stride)
    if not box.height or not box.width:
        return "smaller than hw_stride"
    if box.height * box.width < options.smallest_area:
        return "fewer pixels than min_hxw"
    if not 1 / MOST_ELONGATED <= box.height / box.width <= MOST_ELONGATED:
        return "too elongated"
    return box.height, box.width


def _frame_count(item: dict, options: T2VDataOptions, rng: np.random.Generator) -> Union[int, str]:
    total, fps = item.get("num_frames"), item.get("fps") or DEFAULT_FPS
    if not total:
        return "no num_frames"
    if total > TOO_LONG * (options.num_frames * fps / options.train_fps * options.speed_factor):
        return "too long"
    available = len(resampled(first_frame(item), total, fps, options.train_fps))
    if available < options.num_frames and rng.random() < options.drop_short_ratio:
        return "too short"
    length = usable_length(min(available, options.num_frames), options.num_frames, options.ae_stride_t, options.sp_size)
    return "too short" if length is None else length


def first_frame(item: dict) -> int:
    """Where in its file the sample begins."""
    return item["cut"][0] if item.get("cut") else 0
