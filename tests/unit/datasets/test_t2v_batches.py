"""Batches of annotated samples, by data workers and by several ranks."""

from __future__ import annotations

import numpy as np
import pytest
from made_clips import write_data_file
from t2v_data import dataset_of, read_entries, with_entry

from opensora.datasets.loader import Loader
from opensora.datasets.sampler import BatchSampler


def batches(dataset, count: int, num_workers: int, batch_size: int = 2, rank: int = 0, world_size: int = 1):
    loader = Loader(
        dataset,
        BatchSampler(dataset.buckets, batch_size, rank, world_size, seed=3),
        dataset.collate(batch_size),
        num_workers,
    )
    return [batch for _, batch in zip(range(count), loader)], loader


def assert_equal(ours: dict, theirs: dict) -> None:
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_workers_give_the_same_batches(annotated_clips, tmp_path):
    dataset = dataset_of(with_entry(annotated_clips, tmp_path, path="missing.mp4"), tmp_path, num_frames=9)
    alone, here = batches(dataset, 7, num_workers=0)
    together, by_workers = batches(dataset, 7, num_workers=2)
    for ours, theirs in zip(alone, together):
        assert_equal(ours, theirs)
    assert alone[0]["pixels"].shape[0] == 2 and alone[0]["positions"].tolist() == [0, 1]
    assert here.sampler.state_dict() == by_workers.sampler.state_dict()
    assert here.replaced == by_workers.replaced >= 1 and by_workers.wait_seconds > 0 and by_workers.batches == 7


def test_ranks_share_the_batches_of_one_process(annotated_clips, tmp_path):
    dataset = dataset_of(annotated_clips, tmp_path, num_frames=9)
    alone, _ = batches(dataset, 3, num_workers=0, batch_size=2)
    ranks = [batches(dataset, 3, num_workers=0, batch_size=1, rank=rank, world_size=2)[0] for rank in range(2)]
    for step, whole in enumerate(alone):
        for rank in range(2):
            part = ranks[rank][step]
            assert part["positions"].tolist() == [rank]
            assert np.array_equal(part["pixels"][0], whole["pixels"][rank])
            assert np.array_equal(part["input_ids"][0], whole["input_ids"][rank])


def test_different_sizes_are_padded(annotated_clips, tmp_path):
    dataset = dataset_of(annotated_clips, tmp_path, group_data=False, num_frames=9)
    assert len(dataset.buckets) == 1
    made_batches, _ = batches(dataset, 5, num_workers=0, batch_size=2)
    assert {batch["pixels"].shape for batch in made_batches} == {(2, 3, 9, 64, 96)}
    masks = [batch["attention_mask"] for batch in made_batches]
    assert any(mask is not None and mask.shape == (2, 3, 8, 12) and not mask.all() for mask in masks)


def test_sample_larger_than_the_padded_size_is_rejected(annotated_clips, tmp_path):
    dataset = dataset_of(
        annotated_clips, tmp_path, force_resolution=False, max_hxw=6144, max_height=64, max_width=64, group_data=False
    )
    with pytest.raises(ValueError, match="samples of 29x64x96, .* padded to .* 29x64x64: increase them"):
        dataset.collate(2)
    assert dataset.collate(1).size is None


def test_error_of_a_worker_is_raised(annotated_clips, tmp_path):
    entries = read_entries(annotated_clips)
    dataset = dataset_of(write_data_file(tmp_path, entries), tmp_path)  # its files are not there
    with pytest.raises(ValueError, match="none of 10 samples of one shape could be read"):
        batches(dataset, 1, num_workers=1)
