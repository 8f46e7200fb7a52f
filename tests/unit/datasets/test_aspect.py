"""The tables of resolutions equal the published ones."""

from __future__ import annotations

import json

import pytest
from golden_cases import GOLDEN, case

from opensora.datasets.bucketed.aspect import PIXELS, aspect_sizes, closest_ratio, resolution

TABLES = {name: table for name, table in json.loads((GOLDEN / "aspect.json").read_text()).items() if name[0] != "_"}


@pytest.mark.parametrize("name", TABLES)
def test_golden_tables(name):
    table = TABLES[name]
    assert PIXELS[name] == table["pixels"]
    assert list(aspect_sizes(name).items()) == [(ratio, tuple(size)) for ratio, size in table["ratios"].items()]


def test_all_resolutions_have_a_table():
    assert set(PIXELS) == set(TABLES)


@pytest.mark.parametrize(
    "row", case("aspect", "opensora_cases.json")["cases"], ids=lambda row: f"{row['height']}x{row['width']}"
)
def test_golden_closest_ratio(row):
    for name, (ratio, height, width) in row["expect"].items():
        assert closest_ratio(row["height"], row["width"], name) == ratio
        assert aspect_sizes(name)[ratio] == (height, width)


def test_names_are_normalized():
    assert resolution("4K") == "4k" and resolution(512) == "512"
    with pytest.raises(ValueError, match="unknown resolution '500p'; choose from 144p, 256"):
        aspect_sizes("500p")
