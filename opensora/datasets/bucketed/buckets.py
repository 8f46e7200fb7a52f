"""Buckets of Open-Sora: samples in the same bucket share a resolution, a number of frames and an aspect ratio.

A bucket config maps resolution -> number of frames -> (probability to keep a sample that fits, batch size):

    {"480p": {1: (1.0, 52), 16: (0.5, 4), 32: (0.0, None)}, "256": {1: (1.0, 256)}}

Resolutions are tried from the largest to the smallest. A sample fits a resolution that has at most 1.25 times its
pixels, and there the largest number of frames that it provides; images fit 1 only. It is kept with the configured
probability. Otherwise the next smaller resolution is tried; after the last one the sample is dropped. So (0.0, None)
prevents long videos from being used as shorter clips of the same resolution. If the probability is a pair (for the
resolution, for the number of frames), the second decides whether fewer frames of the same resolution are tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np

from opensora.datasets.bucketed.aspect import PIXELS, aspect_sizes, resolution
from opensora.errors import UserError

MIN_AREA = 0.8  # fraction of a resolution's pixels that a sample must have
UNUSED = -1  # in place of a bucket number, for samples in no bucket


class Bucket(NamedTuple):
    """Samples with the same resolution, number of frames and aspect ratio (a key of the resolution's table)."""

    resolution: str
    frames: int
    ratio: str


class Level(NamedTuple):
    """The buckets of one resolution and number of frames, one per aspect ratio, numbered from `first`."""

    resolution: str
    frames: int
    number: int  # among the levels
    first: int
    keep: float  # probability to keep a sample that fits
    keep_frames: Optional[float]  # probability to try a sample here instead of with fewer frames
    batch_size: Optional[int]


class Buckets:
    """The buckets of a config, numbered by pixels and then by number of frames, both in descending order.

    Args:
        config: resolution (see `opensora.datasets.bucketed.aspect`) -> frames -> (probability, batch size). The
            probability is a number, or a pair as in Open-Sora v1.2.

    Raises:
        UserError: an unknown resolution or an invalid entry.
    """

    def __init__(self, config: Mapping[Any, Mapping[int, Sequence]]):
        config = {resolution(name): entries for name, entries in config.items()}
        self.levels: list[Level] = []
        self._buckets: list[Bucket] = []
        for name in sorted(config, key=PIXELS.__getitem__, reverse=True):
            for frames in sorted(config[name], reverse=True):
                keep, keep_frames, batch_size = _entry(name, frames, config[name][frames])
                self.levels.append(
                    Level(name, frames, len(self.levels), len(self._buckets), keep, keep_frames, batch_size)
                )
                self._buckets += [Bucket(name, frames, ratio) for ratio in aspect_sizes(name)]
        if not self.levels:
            raise UserError("the bucket config is empty; an entry is '480p': {16: (1.0, 4)}")

    def __len__(self) -> int:
        return len(self._buckets)

    def __getitem__(self, number: int) -> Bucket:
        return self._buckets[number]

    def shape(self, number: int) -> tuple[int, int, int]:
        """Frames, height and width of the samples in a bucket."""
        name, frames, ratio = self._buckets[number]
        return frames, *aspect_sizes(name)[ratio]

    def batch_size(self, number: int) -> int:
        """Batch size of a bucket, which must be one that can hold samples."""
        size = next(level.batch_size for level in reversed(self.levels) if level.first <= number)
        assert size is not None, "samples are assigned only to levels with a batch size"
        return size

    def assign(self, shapes: np.ndarray, frame_interval: int = 1, seed: int = 0) -> np.ndarray:
        """Assigns samples of `shapes` (N, 3), frames, height and width, to buckets: (N,) bucket numbers or `UNUSED`.

        A clip of F frames requires a video of more than F * frame_interval frames. The random choice for a sample
        depends only on the seed, the sample's number and the level.
        """
        frames, heights, widths = shapes.T
        found = np.full(len(frames), UNUSED)
        areas = heights * widths
        seeds = seed + np.arange(len(frames)) * len(self)
        for name in dict.fromkeys(level.resolution for level in self.levels):
            candidates = np.flatnonzero((found == UNUSED) & (areas >= MIN_AREA * PIXELS[name]))
            for level in (level for level in self.levels if level.resolution == name):
                lengths = frames[candidates]
                fits = lengths == 1 if level.frames == 1 else lengths > level.frames * frame_interval
                tried, candidates = candidates[fits], candidates[~fits]
                generators = _UniformGenerators(seeds[tried] + level.number)
                if level.keep_frames is not None:
                    skipped = generators.draw() > level.keep_frames
                    candidates = np.sort(np.concatenate([candidates, tried[skipped]]))
                    tried, generators = tried[~skipped], generators.subset(~skipped)
                if level.keep == 0:
                    continue
                if level.keep < 1:
                    tried = tried[generators.draw() < level.keep]
                found[tried] = level.first + _closest(heights[tried] / widths[tried], name)
        return found

    def table(self, assigned: np.ndarray) -> str:
        """A text table: samples, full batches and the most frequent aspect ratios of each level."""
        lines = [f"{'resolution':<10} {'frames':>6} {'keep':>11} {'batch':>6} {'samples':>10} {'batches':>9}  ratios"]
        for level, counts in self.counts(assigned):
            batches = sum(count // level.batch_size for count in counts.values()) if level.batch_size else 0
            common = ", ".join(f"{ratio}: {count}" for ratio, count in counts.most_common(3))
            keep = f"{level.keep:g}" + (f", {level.keep_frames:g}" if level.keep_frames is not None else "")
            lines.append(
                f"{level.resolution:<10} {level.frames:>6} {keep:>11} {level.batch_size or '-':>6} "
                f"{sum(counts.values()):>10,} {batches:>9,}  {common}" + (", ..." if len(counts) > 3 else "")
            )
        unused = int((assigned == UNUSED).sum())
        return "\n".join([*lines, f"{len(assigned):,} samples, {unused:,} of them in no bucket"])

    def counts(self, assigned: np.ndarray) -> list[tuple[Level, Counter]]:
        """For each level, the number of samples of each aspect ratio that occurs, in the order of the ratio table."""
        used = Counter(assigned[assigned != UNUSED].tolist())
        return [
            (level, Counter({self[number].ratio: used[number] for number in self._numbers(level) if used[number]}))
            for level in self.levels
        ]

    def _numbers(self, level: Level) -> range:
        return range(level.first, level.first + len(aspect_sizes(level.resolution)))


class _UniformGenerators:
    """One generator of uniform numbers in [0, 1) per sample; `draw` returns the next number of each."""

    def __init__(self, seeds: np.ndarray, drawn: int = 0):
        self.seeds, self.drawn = seeds, drawn

    def draw(self) -> np.ndarray:
        self.drawn += 1
        return np.array([np.random.default_rng(seed).random(self.drawn)[-1] for seed in self.seeds])

    def subset(self, chosen: np.ndarray) -> _UniformGenerators:
        return _UniformGenerators(self.seeds[chosen], self.drawn)


def _closest(ratios: np.ndarray, name: str) -> np.ndarray:
    """Positions of the closest ratios in the resolution's table; ties go to the first."""
    keys = np.array([float(key) for key in aspect_sizes(name)])
    unique, inverse = np.unique(ratios, return_inverse=True)  # millions of samples have few distinct ratios
    return np.abs(keys - unique[:, None]).argmin(1)[inverse]


def _entry(name: str, frames: int, entry: Sequence) -> tuple[float, Optional[float], Optional[int]]:
    """Validates an entry; returns (keep, keep_frames, batch size)."""
    where = f"bucket_config[{name!r}][{frames!r}] = {entry!r}"
    if not isinstance(frames, int) or frames < 1:
        raise UserError(f"{where}: the number of frames should be a whole number of at least 1")
    try:
        keep, batch_size = entry
        keep, keep_frames = keep if isinstance(keep, (tuple, list)) else (keep, None)
        probabilities = [float(keep)] + ([] if keep_frames is None else [float(keep_frames)])
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: should be (probability, batch size)") from error
    if not all(0 <= probability <= 1 for probability in probabilities):
        raise UserError(f"{where}: a probability should be between 0 and 1")
    if keep > 0 and (not isinstance(batch_size, int) or batch_size < 1):
        raise UserError(f"{where}: the batch size should be a whole number of at least 1; None requires probability 0")
    return float(keep), keep_frames, batch_size
