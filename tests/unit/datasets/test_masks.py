"""Masks of the inpaint model: golden cases of the reference, and the config of their probabilities."""

from __future__ import annotations

import json
import math
import random
from collections import Counter

import numpy as np
import pytest
from golden_cases import case, given, load_case, relative_difference
from processes import ROOT

from opensora.datasets.masks import (
    MaskCompressor,
    MaskConfig,
    MaskProcessor,
    MaskType,
    add_noise_to_condition,
    mask_pixels,
)

MASKS = case("mask_types", "training_cases.json")
NOISE = case("mask_noise_adder", "training_cases.json")


class ReferenceDraws:
    """Replaces the generator by Python's `random`, which the reference uses."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def integers(self, low, high, endpoint):
        assert endpoint
        return self.random.randint(low, high)

    def choice(self, count, size, replace):
        assert not replace
        return self.random.sample(range(count), size)


class StoredNormals:
    """Returns standard normal arrays from a list."""

    def __init__(self, *draws):
        self.draws = list(draws)

    def random(self):
        return 0.5

    def standard_normal(self, shape, dtype):
        draw = self.draws.pop(0)
        assert draw.shape == tuple(np.atleast_1d(shape)) and draw.dtype == dtype
        return draw


@pytest.mark.parametrize("name", [name for name in MASKS["cases"] if not name.startswith("free")])
def test_golden_types(name):
    mask_type, size, low, high = name.rsplit("_", 3)
    frames, height, width = map(int, size.split("x"))
    mask = MaskProcessor(float(low), float(high))(
        MaskType.of(mask_type), frames, ReferenceDraws(MASKS["python_random_seed"])
    )
    assert mask.tolist() == MASKS["cases"][name]["mask_frames"]
    compressed = MaskCompressor()(np.broadcast_to(mask[:, None, None], (1, 1, frames, height, width)))
    assert list(compressed.shape) == MASKS["cases"][name]["compressed_shape"]
    assert (compressed[0, :, :, 0, 0] == load_case("mask_types")[name]).all()


@pytest.mark.parametrize("name", [name for name in MASKS["cases"] if name.startswith("free")])
def test_golden_spatial_compression(name):
    mask = (given("mask_types", name, MASKS["cases"][name]["shape"]) > 0.3).astype(np.float32)
    assert relative_difference(MaskCompressor()(mask), load_case("mask_types")[name]) < 1e-6


@pytest.mark.parametrize("output, strength", [("train", None), ("noise_strength_0p2", 0.2)])
def test_golden_noise(output, strength):
    inputs = {name: given("mask_noise_adder", name, value["shape"]) for name, value in NOISE["inputs"].items()}
    mask = (inputs["mask"] > 0).astype(np.float32)
    noisy = add_noise_to_condition(
        inputs["masked_pixels"], mask, StoredNormals(inputs["sigma_draw"], inputs["noise"]), strength
    )
    assert noisy.dtype == np.float32
    assert relative_difference(noisy, load_case("mask_noise_adder")[output]) < 1e-6


def test_noise_is_omitted_for_one_batch_in_twenty():
    pixels, mask = np.zeros((1, 3, 1, 8, 8), np.float32), np.zeros((1, 1, 1, 8, 8), np.float32)
    assert add_noise_to_condition(pixels, mask, np.random.default_rng(0), 0.0) is pixels
    rng = np.random.default_rng(0)
    clean = sum(add_noise_to_condition(pixels, mask, rng) is pixels for _ in range(2000))
    assert 60 < clean < 140  # one in twenty


def test_masked_pixels_are_black():
    pixels = np.random.default_rng(0).random((2, 3, 5, 4, 4), dtype=np.float32)
    masked = mask_pixels(pixels, np.array([0, 1, 0, 1, 1], np.float32))
    assert (masked[:, :, [0, 2]] == pixels[:, :, [0, 2]]).all() and (masked[:, :, [1, 3, 4]] == -1).all()
    assert masked.dtype == np.float32


@pytest.mark.parametrize("ratios, normalized", NOISE["ratio_normalize"].items())
def test_golden_ratios(ratios, normalized):
    ratios = json.loads(ratios)
    config = MaskConfig(**{f"mask_type_ratio_dict_{'video' if 'i2v' in ratios else 'image'}": ratios})
    found = config.mask_type_ratio_dict_video if "i2v" in ratios else config.mask_type_ratio_dict_image
    assert found == pytest.approx(normalized)


def test_types_are_drawn_by_probability():
    config = MaskConfig.from_file(ROOT / "scripts/train_configs/mask_config.yaml")
    assert config == MaskConfig()
    for is_image, ratios in ((False, config.mask_type_ratio_dict_video), (True, config.mask_type_ratio_dict_image)):
        rng = np.random.default_rng(5)
        counts = Counter(config.draw(is_image, rng).name for _ in range(2000))
        for name, ratio in ratios.items():
            assert abs(counts[name] - 2000 * ratio) <= 4 * math.sqrt(2000 * ratio * (1 - ratio))


@pytest.mark.parametrize("mask_type", [MaskType.continuation, MaskType.random_temporal])
def test_number_of_conditioning_frames_is_in_range(mask_type):
    processor, rng = MaskProcessor(0.25, 0.5), np.random.default_rng(1)
    masks = [processor(mask_type, 21, rng) for _ in range(300)]
    assert {int((mask == 0).sum()) for mask in masks} == set(range(5, 12))
    if mask_type is MaskType.continuation:
        assert all((np.diff(mask) >= 0).all() for mask in masks)
    assert (processor(mask_type, 21, np.random.default_rng(1)) == masks[0]).all()


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "mask_type_ratio_dict_video: {i2v: 1, i3v: 2}",
            "'i3v' is not one of t2iv, i2v, transition, continuation, clear, random_temporal",
        ),
        ("mask_type_ratio_dict_image: {i2v: 1}", "'i2v' is not one of t2iv, clear"),
        ("mask_type_ratio_dict_image: {clear: -1}", "clear -1 should be a number of 0 or more"),
        ("mask_type_ratio_dict_video: 3", "should map some of t2iv"),
        ("min_clear_ratio: 0.8\nmax_clear_ratio: 0.2", "0 <= min"),
        ("max_clear_ratio: all", "'all'"),
        ("max_clear: 1", "unknown key 'max_clear'; valid keys are min_clear_ratio"),
        ("- 1", "unknown key"),
        ("a: [", "not a yaml file"),
    ],
)
def test_invalid_config_is_rejected(text, message, tmp_path):
    (tmp_path / "mask.yaml").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        MaskConfig.from_file(tmp_path / "mask.yaml")
    assert "mask.yaml" in str(error.value)


def test_unknown_type_lists_the_valid_ones():
    assert MaskType.of("i2v") is MaskType.of(MaskType.i2v) is MaskType.i2v
    with pytest.raises(ValueError, match="'t2v' is not one of t2iv, i2v"):
        MaskType.of("t2v")
    with pytest.raises(FileNotFoundError, match="none.yaml"):
        MaskConfig.from_file("none.yaml")
