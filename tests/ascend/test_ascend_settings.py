"""Precisions and settings of the described machines."""

from __future__ import annotations

import argparse

import pytest
from standins.machine import A2, A3, FIRST_GENERATION

from opensora import device
from opensora.errors import UserError

KEEPS, HF32 = "precision_mode", "conv_allow_hf32"


def set_up(*flags: str) -> device.Device:
    parser = argparse.ArgumentParser()
    device.add_arguments(parser)
    return device.setup(parser.parse_args(["--device", "Ascend", *flags]))


@pytest.mark.parametrize("chip, default", [(FIRST_GENERATION, "fp16"), (A2, "bf16"), (A3, "bf16")])
def test_default_precision_is_one_of_the_chip(chip, default, ascend):
    ascend(chip)
    assert set_up().precision == default


def test_first_generation_rejects_bfloat16(ascend):
    ascend(FIRST_GENERATION)
    with pytest.raises(UserError, match="bf16"):
        set_up("--precision", "bf16")


def test_float32_is_float32(ascend):
    """The defaults are HF32 for convolutions and, on a 910A, float16 for everything."""
    machine = ascend(A2)
    set_up("--precision", "fp32")
    assert machine.precision[HF32] is False
    machine = ascend(FIRST_GENERATION)
    set_up("--precision", "fp32")
    assert machine.precision == {KEEPS: "must_keep_origin_dtype", HF32: False}
