"""Generated videos and the real videos of the same file names, frame by frame in constant memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

import numpy as np

from opensora.datasets import transforms
from opensora.datasets.media import BATCH, VideoReader, sample_indices
from opensora.datasets.media.folders import list_videos
from opensora.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """The frames of a pair to compare, and their size.

    Real videos are sampled at every `sample_rate`-th frame; generated ones already are. num_frames None takes all
    frames of the generated video; resolution is the shorter side in pixels, None keeps the size; crop_size is that of a
    square center crop.
    """

    num_frames: Optional[int] = None
    sample_rate: int = 1
    resolution: Optional[int] = None
    crop_size: Optional[int] = None
    batch_size: int = BATCH

    def __post_init__(self):
        for name in ("num_frames", "sample_rate", "resolution", "crop_size", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} must be 1 or more, not {value}")

    def prepare(self, frames: np.ndarray) -> np.ndarray:
        """uint8 (T, H, W, 3) -> float32 (T, 3, h, w) in [0, 1]."""
        pixels = frames.transpose(0, 3, 1, 2).astype(np.float32)
        if self.resolution:
            height, width = pixels.shape[-2:]
            pixels = transforms.resize(pixels, *transforms.short_side(height, width, self.resolution))
        if self.crop_size:
            height, width = pixels.shape[-2:]
            box = transforms.center_box(height, width, self.crop_size, self.crop_size)
            pixels = transforms.crop(pixels, box)
        return pixels / 255


@dataclass(frozen=True)
class Pair:
    real: Path
    generated: Path

    @property
    def name(self) -> str:
        return self.generated.name


def pair_videos(real_dir: Union[str, Path], generated_dir: Union[str, Path]) -> tuple[list[Pair], list[str]]:
    """Pairs videos by file name, or by stem if the suffixes differ; returns the pairs and the unpaired paths.

    Raises:
        UserError: the folders have no file name in common.
    """
    real, generated = list_videos(real_dir), list_videos(generated_dir)
    by_name = {**{path.stem: path for path in real}, **{path.name: path for path in real}}
    pairs = [
        Pair(by_name[path.name if path.name in by_name else path.stem], path)
        for path in generated
        if path.name in by_name or path.stem in by_name
    ]
    if not pairs:
        raise UserError(
            f"no file name is in both {real_dir} ({len(real)} videos) and {generated_dir} ({len(generated)} videos)"
        )
    paired = {path for pair in pairs for path in (pair.real, pair.generated)}
    return pairs, [str(path) for path in (*real, *generated) if path not in paired]


def frames_of_pair(pair: Pair, sampling: Sampling) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields batches of prepared frames of both videos.

    Raises:
        UserError: a damaged or too short video, or frames of different sizes.
    """
    with VideoReader(pair.real) as real, VideoReader(pair.generated) as generated:
        real.check()
        generated.check()
        count = sampling.num_frames or len(generated)
        real_chunks = real.chunks(sample_indices(count, sampling.sample_rate).tolist(), sampling.batch_size)
        for a, b in zip(real_chunks, generated.chunks(range(count), sampling.batch_size)):
            a, b = sampling.prepare(a), sampling.prepare(b)
            if a.shape != b.shape:
                raise UserError(
                    f"{pair.generated}: the frames are {b.shape[2]}x{b.shape[3]}, those of the real video "
                    f"{a.shape[2]}x{a.shape[3]}; use --resolution and --crop_size"
                )
            yield a, b
