"""Annotations without sizes and lengths, which are read from the media files."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from loader_checks import measure_or_crash
from made_clips import write_data_file
from t2v_data import dataset_of, options_of, read_entries, rng

from opensora.datasets.file_reading import read_files
from opensora.datasets.t2v import probing
from opensora.datasets.t2v.index import open_index


@pytest.fixture()
def short_annotations(annotated_clips, tmp_path) -> Path:
    """The data of `annotated_clips` with path, frame range and caption only, as in the annotation guide."""
    entries = read_entries(annotated_clips)
    short = [{"path": entry["path"], "cap": [entry["cap"]]} for entry in entries]
    for entry in short:
        if entry["path"].endswith(".mp4"):
            entry["frame_idx"] = "0:513"
    data = write_data_file(tmp_path, short)
    data.write_text(f"{annotated_clips.parent / 'clips'},{tmp_path / 'annotation.json'}\n")
    return data


def test_short_annotations_give_the_same_dataset(annotated_clips, short_annotations, tmp_path):
    dataset = dataset_of(short_annotations, tmp_path, cfg=0.0)
    complete = dataset_of(annotated_clips, tmp_path / "complete", cfg=0.0)
    assert dataset.index.shapes == complete.index.shapes == [(29, 64, 96), (1, 64, 96)] and len(dataset) == 10
    assert dataset.index.record(2) == {
        "source": 0,
        "path": "2.mp4",
        "cap": ["A square in color 2."],
        "start": 0,
        "num_frames": 33,
        "fps": 24.0,
    }
    sample = dataset.item(2, rng())
    assert sample["replaced"] == 0 and sample["pixels"].shape == (3, 29, 64, 96)


def test_files_are_probed_once(short_annotations, tmp_path, monkeypatch):
    dataset_of(short_annotations, tmp_path)
    monkeypatch.setattr(probing, "read_files", lambda paths, *_: [(path, pytest.fail(path)) for path in paths])
    assert len(dataset_of(short_annotations, tmp_path, num_frames=17)) == 10, "another index from the same files"
    monkeypatch.undo()
    (tmp_path / "dataset_index/media.sqlite").write_bytes(b"damaged" * 1000)
    assert len(dataset_of(short_annotations, tmp_path, num_frames=13)) == 10


def test_unreadable_files_are_probed_again_after_a_change(annotated_clips, tmp_path):
    """They are listed and excluded until they change."""
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in ("0.mp4", "1.mp4", "6.jpg"):
        shutil.copy(annotated_clips.parent / "clips" / name, clips)
    (clips / "2.mp4").write_bytes(b"no video")
    data = write_data_file(
        tmp_path, [{"path": name, "cap": "x"} for name in ("0.mp4", "1.mp4", "2.mp4", "3.mp4", "6.jpg")]
    )
    index = open_index(options_of(data, tmp_path))
    assert len(index) == 3 and index.left_out["no resolution"] == 2
    assert "entry 2: " in index.faults[0] and "3.mp4: no such file" in index.faults[1]
    for name in ("2.mp4", "3.mp4"):
        shutil.copy(annotated_clips.parent / "clips" / name, clips)
    assert len(open_index(options_of(data, tmp_path))) == 5


@pytest.mark.parametrize("batch_size", [1, 8])
def test_file_that_crashes_the_decoder_is_reported(batch_size):
    good = probing.Media(64, 96, 24.0, 33)
    results = list(read_files(["a", "b", "c"], measure_or_crash, batch_size))
    assert results == [("a", good), ("b", "the data worker crashed: SIGSEGV"), ("c", good)]
