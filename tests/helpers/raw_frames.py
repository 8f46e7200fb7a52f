"""Videos before compression: rounding in the last digit may change a pixel by one level, and a codec makes more of it.

As a program, runs a script of the project and keeps the frames of the videos it writes: raw_frames.py SCRIPT ARGUMENTS.
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
    """A `write_video` that stores the frames, too: as NAME.mp4.npy beside NAME.mp4."""

    @contextmanager
    def write_both(path, fps):
        kept = []
        with write_video(path, fps) as write:
            yield lambda frames: (kept.append(np.array(frames)), write(frames))
        np.save(f"{path}.npy", np.concatenate(kept))

    return write_both


def largest_step(actual: Path, expected: Path) -> int:
    """By how many levels a pixel of two kept videos differs at most."""
    one, other = np.load(f"{actual}.npy").astype(int), np.load(f"{expected}.npy").astype(int)
    assert one.shape == other.shape, (one.shape, other.shape)
    return np.abs(one - other).max()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from opensora.datasets import media

    media.write_video = keeping_frames(media.write_video)
    del sys.argv[0]
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
