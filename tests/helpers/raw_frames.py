"""Records the frames of videos before compression, because a codec amplifies differences of one level.

As a program, runs a script of the project and records the frames of its videos: raw_frames.py SCRIPT ARGUMENTS.
"""

from __future__ import annotations

import runpy
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def recording_frames(write_video: Callable) -> Callable:
    """Wraps `write_video` to also save the frames of NAME.mp4 as NAME.mp4.npy."""

    @contextmanager
    def write_both(path, fps):
        recorded = []
        with write_video(path, fps) as write:
            yield lambda frames: (recorded.append(np.array(frames)), write(frames))
        np.save(f"{path}.npy", np.concatenate(recorded))

    return write_both


def max_level_difference(actual: Path, expected: Path) -> int:
    """The largest difference of a pixel, in levels, between two recorded videos."""
    one, other = np.load(f"{actual}.npy").astype(int), np.load(f"{expected}.npy").astype(int)
    assert one.shape == other.shape, (one.shape, other.shape)
    return np.abs(one - other).max()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    from opensora.datasets import media

    media.write_video = recording_frames(media.write_video)
    del sys.argv[0]
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
