"""The pipelines on the described machines: golden cases, and the commands against a CPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from golden_cases import GOLDEN, given, relative_difference
from golden_release import golden_pipeline
from mindspore import Tensor
from model_runs import drawn
from standins import attention
from standins.machine import A2, A3, FIRST_GENERATION
from workflow_configs import STDIT, components, write_workflow_files

from opensora.models import STDiT2
from opensora.pipelines import OpenSoraInpaintPipeline, OpenSoraPipeline
from opensora.pipelines.stdit import ClipSize, STDiTPipeline
from opensora.registry import build_stdit_pipeline

PIPELINES = {"text to video": OpenSoraPipeline, "image to video": OpenSoraInpaintPipeline}
CASES = [
    (A2, True, ms.float16),
    pytest.param(A2, False, ms.float32, marks=pytest.mark.slow),
    pytest.param(FIRST_GENERATION, False, ms.float16, marks=pytest.mark.slow),
    pytest.param(A3, True, ms.float16, marks=pytest.mark.slow),
]
FRAMES, HEIGHT, WIDTH, STEPS = 5, 32, 64, 3
SHAPE = (1, 8, 2, 4, 8)
# Guidance multiplies errors.
MOST = {ms.float32: 1e-4, ms.float16: 0.05}


def generated(kind: str, dtype=ms.float32) -> list[np.ndarray]:
    """Latents and pixels of a golden pipeline, with few steps."""
    condition = {}
    if kind == "image to video":
        image = [GOLDEN / "release_e2e_image_0.png"]
        condition = dict(crop_for_hw=True, sample_condition=False, conditional_pixel_values_path=image)
    pipeline = golden_pipeline(PIPELINES[kind], dtype)
    latents = pipeline(
        "A red circle moves right on a blue background",
        FRAMES,
        HEIGHT,
        WIDTH,
        STEPS,
        max_sequence_length=48,
        latents=given(kind, "z", SHAPE),
        step_noise=lambda k: given(kind, f"noise{k}", SHAPE),
        output_type="latent",
        **condition,
    )
    return [latents, pipeline.output(Tensor(latents), "video")]


@cache
def on_a_cpu(kind: str) -> list[np.ndarray]:
    return generated(kind)


@pytest.mark.parametrize("kind", PIPELINES)
@pytest.mark.parametrize("chip, as_bfloat16, dtype", CASES)
def test_pipeline_equals_a_cpu(kind, chip, as_bfloat16, dtype, ascend):
    expected = on_a_cpu(kind)
    machine = ascend(chip, as_bfloat16)
    differences = [relative_difference(one, other) for one, other in zip(generated(kind, dtype), expected)]
    print(kind, chip, dtype, differences)
    assert max(differences) < MOST[dtype]
    assert (attention.NAME in machine.calls) == (chip != FIRST_GENERATION and dtype == ms.float16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("workflows")
    write_workflow_files(folder)
    # The initial weights of the last layer are zero.
    drawn(STDiT2(**STDIT, caption_channels=32, model_max_length=24)).save_pretrained(folder / "stdit")
    return folder


def edited_clip(pipeline: STDiTPipeline) -> list[np.ndarray]:
    """Latents and pixels of two clips whose first frames are given; one of them is edited."""
    size = ClipSize(4, 32, 48, 24)
    shape = (2, *pipeline.latent_shape(size.video))
    reference = pipeline.encode(np.tanh(given("clip", "x", (2, 3, 1, 32, 48))), given("clip", "e", (2, 4, 1, 4, 6)))
    latents = given("clip", "z", shape)
    latents[:, :, :1] = reference
    mask = np.ones((2, 4), np.float32)
    mask[:, 0] = 0, 0.5
    text = pipeline.embed(["A car.", "A long sentence about a tree."])
    result = pipeline.sample(text, size, latents, mask, lambda k: given("clip", f"noise{k}", shape))
    return [reference, result.asnumpy(), pipeline.decode(result)]


@pytest.mark.parametrize("chip, as_bfloat16, dtype", CASES)
def test_stdit_pipeline_equals_a_cpu(chip, as_bfloat16, dtype, folder, ascend):
    config = components(folder, num_sampling_steps=4, cfg_scale=7.0, cfg_channel=3)
    expected = edited_clip(build_stdit_pipeline(config))
    ascend(chip, as_bfloat16)
    found = edited_clip(build_stdit_pipeline(config, dtype))
    differences = [relative_difference(one, other) for one, other in zip(found, expected)]
    print(chip, dtype, differences)
    assert max(differences) < MOST[dtype]
