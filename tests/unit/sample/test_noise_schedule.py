"""The noise schedule that weights were trained with is in their config.json; samplers follow it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from opensora.pipelines import OpenSoraPipeline
from opensora.sample.options import parse_options
from opensora.schedulers.schedule import cumulative_alphas

V1_5 = ("scaled_linear", 0.00085, 0.012)
LINEAR = ("linear", 1e-4, 0.02)


@pytest.fixture
def trained(release, tmp_path):
    """A function that returns a copy of the transformer with more keys in its config.json."""

    def copy(**keys):
        folder = shutil.copytree(release / "transformer", tmp_path / "trained")
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
        return folder

    return copy


@pytest.mark.parametrize(
    "keys, schedule, zero_snr",
    [
        ({}, LINEAR, True),
        ({"rescale_betas_zero_snr": None, "v1_5_scheduler": None}, LINEAR, True),
        ({"rescale_betas_zero_snr": False}, LINEAR, False),
        ({"v1_5_scheduler": True}, V1_5, True),
    ],
)
def test_pipeline_follows_the_config(release, trained, keys, schedule, zero_snr):
    pipeline = OpenSoraPipeline.from_pretrained(trained(**keys), release / "vae", release / "text")
    np.testing.assert_array_equal(
        pipeline.scheduler.alphas_cumprod[:-1], cumulative_alphas(*schedule, zero_snr=zero_snr)[:-1]
    )


def test_command_follows_the_config(flags, trained):
    folder = trained(prediction_type="epsilon", rescale_betas_zero_snr=True, v1_5_scheduler=True)
    without = [flag for flag in flags if flag != "--rescale_betas_zero_snr"]
    options, _ = parse_options([*without, "--text_prompt", "a", "--model_path", str(folder)])
    assert (options.prediction_type, options.rescale_betas_zero_snr, options.v1_5_scheduler) == ("epsilon", True, True)
    options, _ = parse_options([*without, "--text_prompt", "a"])
    assert (options.prediction_type, options.rescale_betas_zero_snr, options.v1_5_scheduler) == (
        "v_prediction",
        False,
        False,
    )


def test_pipeline_follows_the_recorded_prediction_type(release, trained):
    pipeline = OpenSoraPipeline.from_pretrained(trained(prediction_type="epsilon"), release / "vae", release / "text")
    assert pipeline.scheduler.prediction == "epsilon"
