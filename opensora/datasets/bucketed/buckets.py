"""Buckets: samples that may share a batch have one resolution, one number of frames and one aspect ratio.

A bucket config says for each resolution and number of frames how many of the samples that fit are kept there and how
many make a batch:

    {"480p": {1: (1.0, 52), 16: (0.5, 4), 32: (0.0, None)}, "256": {1: (1.0, 256)}}

A sample is tried with the resolutions from the largest to the smallest. It fits one that has at most 1.25 times its
pixels, and there the largest number of frames that it has; an image fits 1 only. It stays with the probability that
stands there, else it goes to the next smaller resolution, and is left out where there is none. So (0.0, None) keeps
long videos away from shorter clips of the same resolution. A pair of probabilities (of the resolution, of the frames)
lets the second decide whether shorter clips of the same resolution are tried.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np

from opensora.datasets.bucketed.aspect import PIXELS, aspect_sizes, resolution
from opensora.errors import UserError

SMALLEST_AREA = 0.8  # of a resolution's pixels that a sample must have
UNUSED = -1


class Bucket(NamedTuple):
    """One place for samples: `ratio` is a key of the resolution's table."""

    resolution: str
    frames: int
    ratio: str


class Level(NamedTuple):
    """The buckets of one resolution and number of frames: numbers first .. first + ratios."""

    resolution: str
    frames: int
    index: int
    first: int
    keep: float  # probability that a sample that fits stays
    keep_frames: Optional[float]  # probability that it is tried here, not with fewer frames
    batch_size: Optional[int]


class Buckets:
    """The buckets of a config, numbered from the most pixels down and there from the most frames down.

    Args:
        config: resolution -> frames -> (probability, batch size); in place of a probability stands a number, or the
            two of Open-Sora v1.2. Names of resolutions are those of `opensora.datasets.bucketed.aspect`.

    Raises:
        UserError: an unknown resolution, or an entry of another form.
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
        """Frames, height and width of a bucket's samples."""
        name, frames, ratio = self._buckets[number]
        return frames, *aspect_sizes(name)[ratio]

    def batch_size(self, number: int) -> int:
        return self._level(number).batch_size

    def assign(
        self, frames: np.ndarray, heights: np.ndarray, widths: np.ndarray, frame_interval: int = 1, seed: int = 0
    ) -> np.ndarray:
        """The bucket of every sample, (N,) numbers of buckets, `UNUSED` for those that are left out.

        A clip is `frame_interval` times as long in its video, and the video longer than that. NoiseSource follow from the
        seed, the sample's number and the level alone.
        """
        found = np.full(len(frames), UNUSED)
        areas = heights * widths
        seeds = seed + np.arange(len(frames)) * len(self)
        for name in dict.fromkeys(level.resolution for level in self.levels):
            waiting = np.flatnonzero((found == UNUSED) & (areas >= SMALLEST_AREA * PIXELS[name]))
            for level in (level for level in self.levels if level.resolution == name):
                fits = frames[waiting] == 1 if level.frames == 1 else frames[waiting] > level.frames * frame_interval
                tried, waiting = waiting[fits], waiting[~fits]
                generators = _Draws(seeds[tried] + level.index)
                if level.keep_frames is not None:
                    passed_over = generators.draw() > level.keep_frames
                    waiting = np.sort(np.concatenate([waiting, tried[passed_over]]))
                    tried, generators = tried[~passed_over], generators.subset(~passed_over)
                if level.keep == 0:
                    continue
                if level.keep < 1:
                    tried = tried[generators.draw() < level.keep]
                found[tried] = level.first + _closest(heights[tried] / widths[tried], name)
        return found

    def table(self, assigned: np.ndarray) -> str:
        """How many samples and full batches each level has, and its most frequent ratios."""
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
        """Of each level how many samples have each ratio, in the table's order."""
        used = Counter(assigned[assigned != UNUSED].tolist())
        return [
            (level, Counter({self[number].ratio: used[number] for number in self._members(level) if used[number]}))
            for level in self.levels
        ]

    def _members(self, level: Level) -> range:
        return range(level.first, level.first + len(aspect_sizes(level.resolution)))

    def _level(self, number: int) -> Level:
        return next(level for level in reversed(self.levels) if level.first <= number)


class _Draws:
    """Numbers in [0, 1), for each sample from a generator of its own: `draw` gives the next of each."""

    def __init__(self, seeds: np.ndarray, drawn: int = 0):
        self.seeds, self.drawn = seeds, drawn

    def draw(self) -> np.ndarray:
        self.drawn += 1
        return np.array([np.random.default_rng(seed).random(self.drawn)[-1] for seed in self.seeds])

    def subset(self, chosen: np.ndarray) -> _Draws:
        return _Draws(self.seeds[chosen], self.drawn)


def _closest(ratios: np.ndarray, name: str) -> np.ndarray:
    """The places of the nearest ratios in the resolution's table; of equals the first."""
    keys = np.array([float(key) for key in aspect_sizes(name)])
    different, place = np.unique(ratios, return_inverse=True)  # of millions of samples there are few
    return np.abs(keys - different[:, None]).argmin(1)[place]


def _entry(name: str, frames: int, entry: Sequence) -> tuple[float, Optional[float], Optional[int]]:
    """(keep, keep_frames, batch size) of one entry."""
    where = f"bucket_config[{name!r}][{frames!r}] = {entry!r}"
    if not isinstance(frames, int) or frames < 1:
        raise UserError(f"{where}: the number of frames should be a whole number from 1 on")
    try:
        keep, batch_size = entry
        keep, keep_frames = keep if isinstance(keep, (tuple, list)) else (keep, None)
        probabilities = [float(keep)] + ([] if keep_frames is None else [float(keep_frames)])
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: should be (probability, batch size)") from error
    if not all(0 <= probability <= 1 for probability in probabilities):
        raise UserError(f"{where}: a probability lies between 0 and 1")
    if keep > 0 and (not isinstance(batch_size, int) or batch_size < 1):
        raise UserError(f"{where}: the batch size should be a whole number from 1 on; None is for probability 0")
    return float(keep), keep_frames, batch_size
