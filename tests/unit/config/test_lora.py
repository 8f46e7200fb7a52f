"""The flags that name LoRAs."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from opensora.config.lora import LoRASpec, parse_lora


@pytest.mark.parametrize(
    "text, path, scale",
    [
        ("a.safetensors", "a.safetensors", 1),
        ("a.safetensors:0.5", "a.safetensors", 0.5),
        ("folder/a:-1e-1", "folder/a", -0.1),
        ("a:0", "a", 0),
        ("a:b:2", "a:b", 2),
        ("a:b/c", "a:b/c", 1),
        ("2", "2", 1),
    ],
)
def test_path_and_scale(text, path, scale):
    assert parse_lora(text) == LoRASpec(Path(path), scale)


def test_existing_file_with_a_colon_is_taken_whole(tmp_path):
    path = tmp_path / "a:3"
    assert parse_lora(str(path)) == LoRASpec(tmp_path / "a", 3)
    path.touch()
    assert parse_lora(str(path)) == LoRASpec(path, 1)
    assert parse_lora(f"{path}:2") == LoRASpec(path, 2)


@pytest.mark.parametrize("text", ["", ":1", "a:", "a:nan", "a:inf", "a:1e999", "a:strong", "a:1_0:x"])
def test_texts_without_a_path_or_number_are_refused(text):
    with pytest.raises(ArgumentTypeError, match="names no file|should be a finite number"):
        parse_lora(text)
