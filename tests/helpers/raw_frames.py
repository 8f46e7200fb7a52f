"""Stores videos before compression: rounding may change a pixel by one level, which a codec amplifies.

As a program, runs a script of the project and stores the frames of its videos: raw_frames.py SCRIPT ARGUMENTS.
"""

from __future__ import annotations

import runpy
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def keeping_frames(write_video: Callable) -> Callable:
    """Wraps `write_video` to store the frames also as NAME.mp4.npy."""

    @contextmanager
    def write_both(path, fps):
        kept = []
        with write_video(path, fps) as write:
            yield lambda frames: (kept.append(np.array(frames)), write(frames))
        np.save(f"{path}.npy", np.concatenate(kept))

    return write_both


def largest_step(actual: Path, expected: Path) -> int:
    """The largest difference of a pixel between two stored videos, in levels."""
    one, other = np.load(f"{actual}.npy").astype(int), np.load(f"{expected}.npy").astype(int)
    assert one.shape == other.shape, (one.shape, other.shape)
    return np.abs(one - other).max()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from opensora.datasets import media

    media.write_video = keeping_frames(media.write_video)
    del sys.argv[0]
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
