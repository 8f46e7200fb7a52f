"""Every model on the described machines, forward and backward, against a CPU in float32."""

from __future__ import annotations

from functools import cache
from itertools import product

import mindspore as ms
import pytest
from model_runs import CONVOLUTIONAL, TRANSFORMERS, Result, difference, evaluate, perceptual_distance
from processes import slow
from standins import attention, norms, rope
from standins.machine import A2, A3, FIRST_GENERATION

MODELS = {**TRANSFORMERS, **CONVOLUTIONAL, "lpips": perceptual_distance}
# A gradient that is zero in exact arithmetic, as of a bias before a norm, is rounding: of 1e-3 in float16.
SMALLEST = {ms.float16: 1e-2, ms.float32: 1e-3}
LIMITS = {ms.float16: {"outputs": 1e-2, "gradients": 3e-2}, ms.float32: {"outputs": 1e-5, "gradients": 1e-4}}


@cache
def on_a_cpu(name: str) -> Result:
    return evaluate(MODELS[name]())


def check(name: str, dtype) -> None:
    found = difference(evaluate(MODELS[name](), dtype), on_a_cpu(name), SMALLEST[dtype])
    print(f"{name}: {found}")
    assert all(found[key] < limit for key, limit in LIMITS[dtype].items()), found


@pytest.mark.parametrize(
    "name, chip, as_bfloat16",
    [
        *product(TRANSFORMERS, (FIRST_GENERATION,), (False,)),
        *product(TRANSFORMERS, (A2,), (True,)),
        ("dit_tiny_padded", A3, True),
        # No rule of the machines and no branch of the project tells an A3 from an A2.
        *(slow(name, A3, True) for name in TRANSFORMERS if name != "dit_tiny_padded"),
    ],
)
def test_transformers_in_16_bits(name, chip, as_bfloat16, ascend):
    on_a_cpu(name)
    machine = ascend(chip, as_bfloat16=as_bfloat16)
    check(name, ms.float16)
    has_fused, is_transformer = chip != FIRST_GENERATION, name != "mt5_tiny"
    assert (attention.NAME in machine.calls) == (has_fused and is_transformer)
    assert (norms.RMS in machine.calls) == (has_fused and name in ("mt5_tiny", "stdit2_qknorm_xmask", "stdit2_wide"))
    assert (rope.NAME in machine.calls) == (has_fused and name.startswith("stdit2"))


@pytest.mark.parametrize(
    "name, chip",
    [
        *product(CONVOLUTIONAL, (A2,)),
        ("autoencoder_kl", FIRST_GENERATION),
        *(
            pytest.param(name, FIRST_GENERATION, marks=pytest.mark.slow)
            for name in CONVOLUTIONAL
            if name != "autoencoder_kl"
        ),
    ],
)
def test_convolutional_models_in_float16(name, chip, ascend):
    on_a_cpu(name)
    ascend(chip)
    check(name, ms.float16)


@pytest.mark.parametrize("name", [name for name in MODELS if name != "stdit2_wide"])
def test_models_in_float32(name, ascend):
    on_a_cpu(name)
    ascend(A2)
    check(name, ms.float32)
