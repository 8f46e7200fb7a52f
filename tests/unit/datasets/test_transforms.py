"""Sizes and pixels: golden cases of the published training code."""

from __future__ import annotations

import numpy as np
import pytest
from golden_cases import case, given, load_case, relative_difference

from opensora.datasets import transforms
from opensora.datasets.transforms import Box


def arithmetic(rows: str) -> list:
    return case("resize_arith", "training_cases.json")[rows]


@pytest.mark.parametrize("row", arithmetic("max_hxw_rows"), ids=lambda row: f"{row['h']}x{row['w']}-{row['max_hxw']}")
def test_golden_sizes_by_area(row):
    size = transforms.limit_area(row["h"], row["w"], row["max_hxw"])
    assert list(size) == row["resize"]
    if row["crop_ijhw"] is not None:
        assert list(transforms.stride_box(*size, row["hw_stride"])) == row["crop_ijhw"]


@pytest.mark.parametrize(
    "row",
    arithmetic("force_resolution_rows"),
    ids=lambda row: f"{row['h']}x{row['w']}-{row['max_height']}x{row['max_width']}",
)
def test_golden_crop_to_aspect(row):
    assert list(transforms.aspect_box(row["h"], row["w"], row["max_height"], row["max_width"])) == row["crop_ijhw"]


@pytest.fixture(scope="module", params=("clip0", "clip1"))
def clip(request):
    """(uint8 clip, its description, reference results by kind)."""
    described = case("resize_pixels", "training_cases.json")["inputs"][request.param]
    noise = given("resize_pixels", request.param, described["shape"])
    pixels = np.floor(np.clip(128 + 50 * noise, 0, 255)).astype(np.uint8)
    results = {
        name.split("_", 1)[1]: value
        for name, value in load_case("resize_pixels").items()
        if name.startswith(request.param)
    }
    return pixels, described, results


def test_golden_resize_by_area(clip):
    pixels, described, results = clip
    args = described["max_hxw"], described["hw_stride"]
    assert relative_difference(transforms.resize_max_area(pixels / 255, *args), results["float"]) < 1e-5
    resized = transforms.resize_max_area(pixels, *args)
    assert resized.dtype == np.uint8
    assert np.abs(resized.astype(int) - results["uint8"]).max() <= 1  # the reference also rounds between the axes
    assert np.abs(resized - 255 * results["float"]).max() < 0.501


def test_golden_resize_crop(clip):
    pixels, _, results = clip
    assert relative_difference(transforms.resize_crop(pixels / 255, 16, 24), results["force"]) < 1e-5


def test_golden_upscaling(clip):
    pixels, _, results = clip
    height, width = pixels.shape[-2:]
    enlarged = transforms.resize_crop(pixels[:1, :1] / 255, height + 11, width + 5)
    assert relative_difference(enlarged, results["force_up"]) < 1e-5


def test_resize_to_the_same_size_is_exact():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 24), np.uint8)
    assert (transforms.resize_crop(pixels, 16, 24) == pixels).all()


@pytest.mark.parametrize(
    "height, width, expected", [(240, 426, (336, 596)), (426, 240, (596, 336)), (50, 50, (336, 336))]
)
def test_short_side_keeps_the_aspect(height, width, expected):
    assert transforms.short_side(height, width, 336) == expected


def test_crop_larger_than_the_image_is_rejected():
    with pytest.raises(ValueError, match="cannot crop 8x40 out of 16x32"):
        transforms.center_box(16, 32, 8, 40)
    assert transforms.center_box(17, 32, 8, 30) == Box(4, 1, 8, 30)


def test_conversion_between_uint8_and_float_keeps_levels():
    levels = np.arange(256, dtype=np.uint8)
    values = transforms.to_float(levels)
    assert values.dtype == np.float32 and values.min() == -1 and values.max() == 1
    back = transforms.to_uint8(values).astype(int)
    assert np.abs(back - levels).max() <= 1, "truncation loses one level at most"
    assert (transforms.to_uint8(values, "half_even") == levels).all()
    assert (transforms.to_uint8(values, "half_up") == levels).all()


@pytest.mark.parametrize(
    "rounding, expected",
    [
        ("down", [0, 0, 0, 127, 254, 255, 255]),
        ("half_even", [0, 0, 0, 128, 255, 255, 255]),
        ("half_up", [0, 0, 1, 128, 255, 255, 255]),
    ],
)
def test_rounding_to_uint8(rounding, expected):
    assert transforms.to_uint8(np.float32([-1.5, -1, -0.99607843, 0, 0.999, 1, 7]), rounding).tolist() == expected
