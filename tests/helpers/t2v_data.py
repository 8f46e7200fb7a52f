"""Text-to-video datasets over generated clips, see `made_clips`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from loader_checks import LettersTokenizer
from made_clips import write_data_file

from opensora.datasets.t2v.dataset import T2VDataset
from opensora.datasets.t2v.options import T2VDataOptions


def options_of(data: Path, cache: Path, **changes) -> T2VDataOptions:
    options = {
        "data": str(data),
        "num_frames": 29,
        "max_height": 64,
        "max_width": 96,
        "force_resolution": True,
        "group_data": True,
        "model_max_length": 64,
        "cache_dir": str(cache),
    }
    return T2VDataOptions(**{**options, **changes})


def dataset_of(data: Path, cache: Path, **changes) -> T2VDataset:
    return T2VDataset(options_of(data, cache, **changes), LettersTokenizer(), quiet=True)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def read_entries(data: Path) -> list:
    return json.loads((data.parent / "annotation.json").read_text())


def with_entry(data: Path, folder: Path, **changes) -> Path:
    """A data file in `folder` with the clips of `data`, and with its first entry changed."""
    entries = read_entries(data)
    entries[0].update(changes)
    changed = write_data_file(folder, entries)
    changed.write_text(f"{data.parent / 'clips'},{folder / 'annotation.json'}\n")
    return changed
