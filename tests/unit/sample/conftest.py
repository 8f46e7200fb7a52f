"""Fixtures of small runs of sample.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import make_release


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    return make_release(tmp_path_factory.mktemp("release"))


@pytest.fixture
def flags(release, tmp_path) -> list[str]:
    """The flags of a small run with results in tmp_path/out."""
    return (
        f"--model_path {release}/transformer --ae_path {release}/vae --text_encoder_name_1 {release}/text "
        f"--save_img_path {tmp_path}/out --num_frames 5 --height 32 --width 64 --num_sampling_steps 2 "
        "--max_sequence_length 64 --rescale_betas_zero_snr --device CPU"
    ).split()
