"""Which samples training uses under given flags, why it leaves out the others, and which flags use more of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple, Union

import numpy as np

from opensora.datasets import transforms
from opensora.datasets.prepare.options import SelectionFlags
from opensora.datasets.t2v.index_builder import SHORT_VIDEO_SEED
from opensora.datasets.t2v.selection import DEFAULT_FPS, MAX_ASPECT, Shape, max_frames, select_entry
from opensora.datasets.temporal_sampling import MIN_FRAMES, resample
from opensora.errors import UserError

TRIED_FRAMES = (5, 9, 13, 17, 29, 49, 65, 93)  # values of --num_frames
GOOD_SHARE = 0.9  # of the most samples that any tried flags use; of these flags the least different are suggested


class Choice(NamedTuple):
    """Flags, and the number of samples that training uses with them."""

    flags: SelectionFlags
    used: int


def select_all(entries: Sequence[dict], flags: SelectionFlags) -> list[Union[Shape, str]]:
    """The shape of each sample, or why it is left out, as training decides it.

    Args:
        entries: results of `check_entry`.
    """
    rng = np.random.default_rng(SHORT_VIDEO_SEED)
    selected = [select_entry(entry, flags, rng) for entry in entries]
    counts = Counter(shape for shape in selected if isinstance(shape, Shape))
    return [
        f"of a size with few samples: {shape} has {counts[shape]}, needs {flags.min_samples} "
        f"(--min_steps_per_size {flags.min_steps_per_size})"
        if isinstance(shape, Shape) and counts[shape] < flags.min_samples
        else shape
        for shape in selected
    ]


def count_used(selected: Sequence[Union[Shape, str]]) -> int:
    return sum(isinstance(shape, Shape) for shape in selected)


def explain(entry: dict, reason: str, flags: SelectionFlags) -> str:
    """`reason` of `select_all`, with the numbers that are compared."""
    numbers = _numbers(entry, reason, flags)
    return f"{reason}: {numbers}" if numbers else reason


def _numbers(entry: dict, reason: str, flags: SelectionFlags) -> str:
    height, width = entry["resolution"]["height"], entry["resolution"]["width"]
    if reason == "too short":
        total, fps = entry["num_frames"], entry["fps"] or DEFAULT_FPS
        needed = flags.num_frames if flags.drop_short_ratio else min(MIN_FRAMES, flags.num_frames)
        available = len(resample(0, total, fps, flags.train_fps))
        resampled = f", which are {available} at {flags.train_fps} fps" if available != total else ""
        return f"{total} frames at {fps:g} fps{resampled}, needs {needed}"
    if reason == "too long":
        total, fps = entry["num_frames"], entry["fps"] or DEFAULT_FPS
        return f"{total} frames at {fps:g} fps, at most {max_frames(fps, flags)}"
    if reason == "too elongated":
        target = f" of {flags.max_height}:{flags.max_width}" if flags.force_resolution else ""
        return f"height x width {height}x{width}, at most {MAX_ASPECT:g}:1{target}"
    if reason == "fewer pixels than min_hxw":
        return f"height x width {height}x{width}, needs {flags.smallest_area} pixels after resizing"
    if reason == "smaller than hw_stride":
        return f"height x width {height}x{width}, needs {flags.hw_stride} in both"
    return ""


def by_num_frames(entries: Sequence[dict], flags: SelectionFlags) -> list[Choice]:
    """The samples used with other values of --num_frames."""
    numbers = sorted({*TRIED_FRAMES, flags.num_frames})
    return [_choice(entries, other) for number in numbers for other in _with_frames(flags, number)]


def suggest(entries: Sequence[dict], flags: SelectionFlags) -> Choice:
    """The flags that differ least from the given ones among those that use almost the most samples.

    Lengths below 29 frames, on which the published models were not trained, are tried only if nothing else is used.
    """
    sizes = [flags, *_other_sizes(entries, flags)]
    numbers = sorted({*TRIED_FRAMES, flags.num_frames})
    for few in (False, True):
        tried = [
            (place, _choice(entries, other))
            for place, size in enumerate(sizes)
            for number in numbers
            if few or number >= MIN_FRAMES or number == flags.num_frames
            for other in _with_frames(size, number)
        ]
        most = max(choice.used for _, choice in tried)
        if most:
            break
    good = [(place, choice) for place, choice in tried if choice.used >= GOOD_SHARE * most]

    def change(tried_one: tuple[int, Choice]) -> tuple:
        place, choice = tried_one
        ratio = abs(math.log(choice.flags.num_frames / flags.num_frames))
        return (place > 0) + (ratio > 0), ratio, place, -choice.used

    return min(good, key=change)[1]


def _choice(entries: Sequence[dict], flags: SelectionFlags) -> Choice:
    return Choice(flags, count_used(select_all(entries, flags)))


def _with_frames(flags: SelectionFlags, number: int) -> Iterator[SelectionFlags]:
    """The flags with another --num_frames, if the other flags allow it."""
    try:
        yield replace(flags, num_frames=number)
    except UserError:  # not divisible by sp_size
        return


def _other_sizes(entries: Sequence[dict], flags: SelectionFlags) -> Iterator[SelectionFlags]:
    """Flags of the same area: for samples of any size, and with the most frequent size for all."""
    area = flags.max_height * flags.max_width if flags.force_resolution else flags.area_limit
    yield replace(flags, force_resolution=False, max_hxw=area, min_hxw=min(area, flags.hw_stride**2))
    sizes = Counter((entry["resolution"]["height"], entry["resolution"]["width"]) for entry in entries)
    (height, width), _ = sizes.most_common(1)[0]
    box = transforms.stride_box(*transforms.limit_area(height, width, area), flags.hw_stride)
    if box.height and box.width:
        yield replace(flags, force_resolution=True, max_height=box.height, max_width=box.width)
