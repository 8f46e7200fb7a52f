"""Masks of Open-Sora v1.1 training: golden cases of the reference."""

from __future__ import annotations

import random

import numpy as np
import pytest
from golden_cases import case

from opensora.datasets.bucketed.mask_ratios import NAMES, MaskGenerator

CASES = case("mask_ratios", "opensora_cases.json")["cases"]


def texts(masks: np.ndarray) -> list[str]:
    return ["".join(str(int(frame)) for frame in mask) for mask in masks]


@pytest.mark.parametrize("row", CASES, ids=lambda row: f"{'-'.join(row['ratios'])[:24]}-{row['T']}")
def test_golden_masks(row):
    masks = MaskGenerator(row["ratios"]).draw_batch(row["B"], row["T"], random.Random(row["seed"]))
    if "error" in row:  # the reference fails to draw a length; here a quarter of so few frames is one frame
        assert row["T"] in (2, 3) and masks.shape == (row["B"], row["T"])
        assert all(1 <= (~mask).sum() <= 2 for mask in masks)
    else:
        assert texts(masks) == row["expect"]


@pytest.mark.parametrize("row", CASES[:4], ids=lambda row: str(row["seed"]))
def test_both_spellings_are_equivalent(row):
    plain = {name.replace("mask_no", "identity").replace("mask_", ""): ratio for name, ratio in row["ratios"].items()}
    masks = MaskGenerator(plain).draw_batch(row["B"], row["T"], random.Random(row["seed"]))
    assert texts(masks) == row["expect"]


def test_identity_gets_the_remaining_probability():
    generator = MaskGenerator({"image_head": 0.25})
    assert generator.ratios == {"image_head": 0.25, "identity": 0.75}
    rng = random.Random(0)
    heads = sum(not generator.draw(8, rng)[0] for _ in range(2000))
    assert 0.22 < heads / 2000 < 0.28


def test_interpolate_masks_every_other_frame():
    masks = {tuple(mask) for mask in MaskGenerator({"intepolate": 1.0}).draw_batch(20, 5, random.Random(0))}
    assert masks == {(False, True, False, True, False), (True, False, True, False, True)}


def test_random_keeps_a_frame_to_train():
    masks = MaskGenerator({"random": 1.0}).draw_batch(200, 2, random.Random(0))
    assert masks.any(1).all() and (~masks).any(1).any() and masks.all(1).any()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 17])
def test_any_length_is_supported(name, frames):
    masks = MaskGenerator({name: 1.0}).draw_batch(10, frames, random.Random(1))
    assert masks.shape == (10, frames) and masks.dtype == bool
    if frames == 1 or name == "identity":
        assert masks.all()


@pytest.mark.parametrize(
    "ratios, words",
    [
        ({"quarter_middle": 1.0}, "'quarter_middle' is not one of identity, quarter_random"),
        ({"identity": 0.5, "image_head": 0.4}, "add up to 0.9"),
        ({"image_head": 1.5}, "image_head is 1.5"),
        ({"image_head": "0.5"}, "image_head is '0.5'"),
        ({"mask_no": 0.5, "identity": 0.5}, "'mask_no' and 'identity' are the same key"),
        ({"image_head": 0.7, "image_tail": 0.7}, "add up to 1.4"),
    ],
)
def test_invalid_ratios_are_rejected(ratios, words):
    with pytest.raises(ValueError, match=words):
        MaskGenerator(ratios)
