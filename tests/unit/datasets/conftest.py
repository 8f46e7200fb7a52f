"""Fixtures of the dataset tests: generated clips and annotated data."""

from __future__ import annotations

from pathlib import Path

import pytest
from ffmpeg_files import corrupt_middle, make_clip
from made_clips import make_clips


@pytest.fixture(scope="session")
def real_clip(tmp_path_factory) -> Path:
    """A clip like one from a camera: H.264 with B-frames, and audio."""
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture(scope="session")
def corrupt_clip(real_clip) -> Path:
    """`real_clip` with overwritten bytes in the middle."""
    return corrupt_middle(real_clip, real_clip.with_name("corrupt.mp4"))


@pytest.fixture(scope="session")
def annotated_clips(tmp_path_factory) -> Path:
    """A data file of 6 videos and 4 images of 64x96."""
    return make_clips(tmp_path_factory.mktemp("annotated") / "data")
