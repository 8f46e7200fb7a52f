"""The order of samples: golden cases of the published sampler, and properties in which this sampler differs.

The published sampler divides the concatenation of all buckets into steps, so a step can contain several buckets; then
the batch of a process keeps its most frequent shape and drops the others. This sampler divides each bucket separately.
"""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from golden_cases import case

from opensora.datasets.sampler import BatchSampler, epoch_steps, group

GOLDEN = case("sampler_order", "training_cases.json")
LENGTHS = np.array([list(dict.fromkeys(GOLDEN["lengths"])).index(length) for length in GOLDEN["lengths"]])


class StoredPermutations:
    """Returns the permutations recorded in a golden case; those of steps only if `of_steps`."""

    def __init__(self, permutations: list, of_steps: bool):
        self.permutations, self.of_steps = iter(permutations), of_steps

    def permutation(self, what):
        if isinstance(what, np.ndarray):
            return what[next(self.permutations)]
        return np.array(next(self.permutations)) if self.of_steps else np.arange(what)


def published_steps(conf: dict) -> np.ndarray:
    """(steps, world_size, batch_size) in the order in which the published sampler divides them; -1 if skipped."""
    world, batch = conf["world_size"], conf["batch_size"]
    order = conf["randperm_calls"][-1]
    steps = np.full((len(order), world, batch), -1)
    skipped = conf["initial_global_step"] * conf["gradient_accumulation_size"]
    steps[order[skipped:]] = np.array(conf["indices"]).reshape(-1, world, batch)
    return steps


@pytest.mark.parametrize("name", [name for name, conf in GOLDEN["confs"].items() if conf["group_data"]])
def test_golden_order_of_samples(name):
    """Except for fill-ups, published batches are the most frequent shape of the samples at the same positions."""
    conf = GOLDEN["confs"][name]
    size = conf["world_size"] * conf["batch_size"]
    buckets = group(LENGTHS)
    steps = epoch_steps(buckets, size, StoredPermutations(conf["randperm_calls"], of_steps=False))
    row = []
    for bucket in buckets:
        count = -(-len(bucket) // size)
        row += steps[:count].ravel()[: len(bucket)].tolist()
        steps = steps[count:]
    published = published_steps(conf)
    compared = 0
    for start, batches in zip(range(0, len(row), size), published):
        for rank, batch in enumerate(batches):
            ours = np.array(row[start + rank : start + size : conf["world_size"]])
            if batch[0] >= 0 and len(ours):
                most = Counter(reversed(LENGTHS[ours].tolist())).most_common(1)[0][0]  # ties go to the last
                kept = ours[LENGTHS[ours] == most]
                assert batch[: len(kept)].tolist() == kept.tolist()
                compared += len(kept)
    assert compared > 0.6 * np.sum(published >= 0)  # the others were filled up at random


def test_golden_order_of_steps():
    """Without buckets, all positions agree except one that the published sampler fills at random."""
    conf = GOLDEN["confs"]["conf1"]
    steps = epoch_steps([np.arange(35)], 4, StoredPermutations(conf["randperm_calls"], of_steps=True))
    ours = np.stack([steps[:, rank::2] for rank in range(2)], axis=1).ravel()
    different = np.flatnonzero(ours != conf["indices"])
    assert len(different) == 1 and conf["indices"][different[0]] == conf["indices"][different[0] - 1]


def read_epoch(buckets, batch_size, world_size, seed=0):
    """(steps, world_size * batch_size) by position in the step."""
    samplers = [BatchSampler(buckets, batch_size, rank, world_size, seed) for rank in range(world_size)]
    rows = []
    for _ in range(len(samplers[0])):
        row = np.empty(batch_size * world_size, int)
        for sampler in samplers:
            batch = next(sampler.upcoming())
            row[batch.positions] = batch.indices
            sampler.advance()
        rows.append(row)
    return np.stack(rows)


@pytest.mark.parametrize("batch_size, world_size", [(1, 1), (2, 2), (3, 2), (8, 4)])
def test_steps_are_from_one_bucket_and_complete(batch_size, world_size):
    steps = read_epoch(group(LENGTHS), batch_size, world_size)
    assert all(len(set(LENGTHS[row])) == 1 for row in steps)
    counts = Counter(steps.ravel().tolist())
    assert set(counts) == set(range(len(LENGTHS)))
    for bucket in group(LENGTHS):  # fill-ups are distributed evenly
        times = [counts[sample] for sample in bucket]
        assert max(times) - min(times) <= 1


def test_ranks_share_the_steps_of_one_process():
    assert np.array_equal(read_epoch(group(LENGTHS), 1, 4), read_epoch(group(LENGTHS), 4, 1))


def test_epochs_and_seeds_differ():
    sampler = BatchSampler(group(LENGTHS), 2)
    upcoming = sampler.upcoming()
    epochs = [[next(upcoming) for _ in range(len(sampler))] for _ in range(2)]
    orders = [np.concatenate([batch.indices for batch in epoch]) for epoch in epochs]
    assert not np.array_equal(*orders) and set(orders[0]) == set(orders[1])
    seeds = [json.dumps(seed) for epoch in epochs for batch in epoch for seed in batch.seeds]
    assert len(set(seeds)) == len(seeds)
    other = BatchSampler(group(LENGTHS), 2, seed=1).upcoming()
    assert not np.array_equal(np.concatenate([next(other).indices for _ in range(len(sampler))]), orders[0])
    assert sampler.step == 0, "prefetching does not advance"


@pytest.mark.parametrize("steps", [0, 5, 18, 30])
def test_resume_is_exact(steps):
    sampler = BatchSampler(group(LENGTHS), 2, rank=1, world_size=1 + 1)
    for _ in range(steps):
        sampler.advance()
    state = json.loads(json.dumps(sampler.state_dict()))
    resumed = BatchSampler(group(LENGTHS), 2, rank=1, world_size=2)
    resumed.load_state_dict(state)
    assert (resumed.epoch, resumed.step) == (sampler.epoch, sampler.step)
    for _, ours, theirs in zip(range(25), sampler.upcoming(), resumed.upcoming()):
        assert ours.indices.tolist() == theirs.indices.tolist() and ours.seeds == theirs.seeds


def test_resume_with_other_world_sizes_reads_each_sample_once():
    buckets = [np.arange(24), np.arange(24, 48)]
    seen, state = [], None
    for world_size, steps in ((2, 3), (4, 4), (2, 5), (1, 10)):
        samplers = [BatchSampler(buckets, 2, rank, world_size) for rank in range(world_size)]
        for sampler in samplers:
            if state:
                sampler.load_state_dict(state)
        for _ in range(steps):
            for sampler in samplers:
                if sampler.epoch == 0:
                    seen += next(sampler.upcoming()).indices.tolist()
                sampler.advance()
        assert len({json.dumps(sampler.state_dict()) for sampler in samplers}) == 1
        state = samplers[0].state_dict()
    # 12 + 32 samples are read in full steps, the last 4 in steps of 4 from either bucket
    assert samplers[0].epoch == 1 and set(seen) == set(range(48)) and len(seen) <= 48 + 2 * 3


def test_changed_dataset_is_rejected():
    sampler = BatchSampler([np.arange(4)], 1)
    with pytest.raises(ValueError, match="had 4 samples, now there are 5"):
        BatchSampler([np.arange(5)], 1).load_state_dict(sampler.state_dict())
