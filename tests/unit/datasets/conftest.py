"""Fixtures of the dataset tests: generated clips and annotated data."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_clips import make_clips


@pytest.fixture(scope="session")
def annotated_clips(tmp_path_factory) -> Path:
    """A data file of 6 videos and 4 images of 64x96."""
    return make_clips(tmp_path_factory.mktemp("annotated") / "data")
