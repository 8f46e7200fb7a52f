"""Training with cached text embeddings."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from loader_checks import LettersTokenizer
from t2v_data import options_of, read_entries, rng

from opensora.datasets.t2v.dataset import T2VDataset
from opensora.datasets.t2v.options import T2VDataOptions
from opensora.datasets.t2v.text_embeddings import EMPTY_TEXT, Origin, digest, save_embedding


@pytest.fixture()
def embedded(annotated_clips, tmp_path) -> T2VDataOptions:
    """Options for `annotated_clips` with embeddings: states are k for the k-th sample, and -1 for the empty text."""
    folder = tmp_path / "embeddings"
    mask = np.array([1] * 5 + [0] * 59, np.int32)
    for number in range(10):
        save_embedding(folder / f"{number}.npz", np.full((64, 8), number, np.float32), mask)
    save_embedding(folder / EMPTY_TEXT, np.full((64, 8), -1, np.float32), mask)
    data = tmp_path / "merge_data.txt"
    data.write_text(f"{annotated_clips.parent / 'clips'},{folder},{annotated_clips.parent / 'annotation.json'}\n")
    return options_of(data, tmp_path, text_embed_cache=True)


def test_embeddings_replace_tokens(embedded):
    for cfg, value in ((0.0, 3), (1.0, -1)):
        sample = T2VDataset(replace(embedded, cfg=cfg), None, quiet=True).item(3, rng())
        assert sample["cond"].shape == (1, 64, 8) and sample["cond_mask"].sum() == 5 and "input_ids" not in sample
        assert (sample["cond"][0, :5] == value).all() and (sample["cond"][0, 5:] == 0).all()


def test_missing_embeddings_are_rejected(annotated_clips, embedded, tmp_path):
    with pytest.raises(ValueError, match="has no embedding_root"):
        T2VDataset(replace(embedded, data=str(annotated_clips)), None, quiet=True)
    with pytest.raises(ValueError, match="give either a tokenizer or"):
        T2VDataset(embedded, LettersTokenizer(), quiet=True)
    (tmp_path / "embeddings/3.npz").unlink()
    with pytest.raises(ValueError, match="_empty.npz: made with --model_max_length 64, but training uses 32"):
        T2VDataset(replace(embedded, model_max_length=32), None, quiet=True)
    assert T2VDataset(replace(embedded, cfg=0.0), None, quiet=True).item(3, rng())["replaced"] == 1
    (tmp_path / "embeddings" / EMPTY_TEXT).unlink()
    with pytest.raises(FileNotFoundError, match="_empty.npz: no such embedding; sample_text_embed.py makes it"):
        T2VDataset(embedded, None, quiet=True)


def origin_of(caption: str, encoder: str = "e") -> Origin:
    return Origin("", digest(caption.encode()), "", encoder)


def test_embeddings_of_other_captions_are_rejected(annotated_clips, embedded, tmp_path):
    folder, mask = tmp_path / "embeddings", np.ones(64, np.int32)

    def save(name: str, value: int, origin: Origin) -> None:
        save_embedding(folder / name, np.full((64, 8), value, np.float32), mask, origin)

    def open_dataset() -> T2VDataset:
        return T2VDataset(replace(embedded, cfg=0.0), None, quiet=True)

    save(EMPTY_TEXT, -1, origin_of(""))
    for number in range(10):
        save(f"{number}.npz", number, origin_of(f"A square in color {number}."))
    assert open_dataset().item(3, rng())["cond"][0, 0, 0] == 3
    save("3.npz", 3, origin_of("A circle."))
    with pytest.raises(ValueError, match="1 text embeddings .*3.npz: made from another caption than the one that"):
        open_dataset()
    save("3.mp4.npz", 33, origin_of("A square in color 3."))
    assert open_dataset().item(3, rng())["cond"][0, 0, 0] == 33
    save("4.npz", 4, origin_of("A square in color 4.", encoder="another"))
    with pytest.raises(ValueError, match="4.npz: made by another text encoder"):
        open_dataset()


def test_shared_embedding_without_origin_is_rejected(annotated_clips, embedded, tmp_path):
    """Two segments of a video in a cache of an earlier version."""
    entries = read_entries(annotated_clips)
    entries.append({**entries[0], "cap": "Another segment.", "cut": [1, 32]})
    (tmp_path / "annotation.json").write_text(json.dumps(entries))
    folders = annotated_clips.parent / "clips", tmp_path / "embeddings", tmp_path / "annotation.json"
    Path(embedded.data).write_text(",".join(map(str, folders)))
    with pytest.raises(ValueError, match="0.npz: captions of 0.mp4 and 0.mp4 share this file"):
        T2VDataset(embedded, None, quiet=True)
