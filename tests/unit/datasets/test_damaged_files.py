"""Every reader accepts damaged files or rejects them with a one-line error; thousands of files with -m slow."""

from __future__ import annotations

import pytest
from file_fuzzing import run_reader
from file_readers import READERS


def faults(name: str, seeds: range) -> list:
    results = list(run_reader(name, seeds))
    assert [seed for seed, *_ in results] == list(seeds)
    return [result for result in results if result[1] not in ("read", "rejected")]


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_rejected(name):
    assert faults(name, range(100)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_many_damaged_files_are_read_or_rejected(name):
    assert faults(name, range(1000, 1000 + 20_000 // len(READERS))) == []
