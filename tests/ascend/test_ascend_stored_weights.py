"""Models whose weights are held in 16 or 8 bits on the described machines, loaded and streamed, against a CPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from golden_cases import relative_difference
from standins.machine import A2, A3, FIRST_GENERATION
from stored_models import KINDS, STREAMABLE, outputs, same, write_model

from opensora.models.common.layers import WeightLayer

NAMES = ("mt5", "dit", "stdit2", "wfvae")
MOST = {ms.float32: 1e-5, ms.float16: 1e-2}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return cache(lambda name: write_model(tmp_path_factory.mktemp(name), name, "BF16"))


@cache
def on_a_cpu(path: Path, name: str, weights: str) -> list[np.ndarray]:
    return outputs(name, KINDS[name].model.from_pretrained(path, weights=weights))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "chip, as_bfloat16, dtype, weights",
    [
        (FIRST_GENERATION, False, ms.float32, "as_stored"),
        (FIRST_GENERATION, False, ms.float16, "q8_0"),
        (A2, False, ms.float32, "as_stored"),
        (A2, False, ms.float32, "q8_0"),
        (A2, True, ms.float16, "as_stored"),
        (A3, True, ms.float16, "q8_0"),
    ],
)
def test_stored_weights(chip, as_bfloat16, dtype, name, weights, files, ascend):
    path = files(name)
    expected = on_a_cpu(path, name, weights)
    ascend(chip, as_bfloat16=as_bfloat16)
    model = KINDS[name].model.from_pretrained(path, dtype, weights=weights)
    held = {layer.weight.dtype for _, layer in model.cells_and_names() if isinstance(layer, WeightLayer)}
    assert (ms.int8 in held) == (weights == "q8_0" and name != "wfvae")
    if weights == "as_stored":
        assert (ms.bfloat16 in held) == (dtype == ms.float32 and chip != FIRST_GENERATION)
    found = outputs(name, model)
    for array, exact in zip(found, expected):
        assert relative_difference(array, exact) < MOST[dtype]
    if name in STREAMABLE:
        streamed = KINDS[name].model.from_pretrained(path, dtype, weights=weights, streamed=True)
        assert same(outputs(name, streamed), found)
