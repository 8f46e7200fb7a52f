"""Buckets and the order of their batches: golden cases of the published code."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from golden_cases import case, case_names

from opensora.datasets.broken import MAX_ATTEMPTS
from opensora.datasets.bucketed.buckets import UNUSED, Bucket, Buckets
from opensora.datasets.bucketed.sampler import BucketSampler

FILE = "opensora_cases.json"


def buckets_of(golden: dict) -> Buckets:
    return Buckets(
        {
            name: {int(frames): entry for frames, entry in entries.items()}
            for name, entries in golden["bucket_config"].items()
        }
    )


@pytest.mark.parametrize("name", case_names("bucket_guide", FILE))
def test_golden_buckets(name):
    golden = case(name, FILE)
    buckets = buckets_of(golden)
    assert len(buckets) == golden["num_bucket"]
    assert list(dict.fromkeys(level.resolution for level in buckets.levels)) == golden["order"]
    for level in buckets.levels:
        assert golden["bucket_index"][level.resolution][str(level.frames)] == level.number
    samples = golden["samples"]
    sizes = np.array([[sample["T"], sample["H"], sample["W"]] for sample in samples])
    intervals = np.array([sample["frame_interval"] for sample in samples])
    for interval in np.unique(intervals):
        found = buckets.assign(sizes, int(interval), golden["base_seed"])
        for i in np.flatnonzero(intervals == interval):
            expected = samples[i]["expect"]
            assert (found[i] == UNUSED) == (expected is None), i
            if expected is not None:
                assert buckets[found[i]] == Bucket(*expected["bucket"])
                assert list(buckets.shape(found[i])) == expected["thw"]
                assert buckets.batch_size(found[i]) == expected["batch_size"]


def fractions(config: dict, frames: int, count: int = 4000) -> dict:
    """The fraction of `count` equal 1080p samples in each level."""
    buckets = Buckets(config)
    found = buckets.assign(np.tile((frames, 1080, 1920), (count, 1)), seed=3)
    return {(level.resolution, level.frames): sum(counts.values()) / count for level, counts in buckets.counts(found)}


def test_pair_of_probabilities():
    """The second probability selects among the lengths of one resolution, the first among resolutions."""
    config = {"480p": {64: ((0.5, 0.25), 1), 16: ((1.0, 1.0), 2)}, "144p": {16: (1.0, 4)}}
    found = fractions(config, 100)
    assert found[("480p", 64)] == pytest.approx(0.25 * 0.5, abs=0.02)
    assert found[("480p", 16)] == pytest.approx(0.75, abs=0.02)
    assert found[("144p", 16)] == pytest.approx(0.25 * 0.5, abs=0.02)


def test_samples_are_kept_by_probability():
    found = fractions({"480p": {16: (0.5, 1), 32: (0.0, None)}, "144p": {16: (0.5, 1)}}, 20)
    assert found[("480p", 16)] == pytest.approx(0.5, abs=0.03)
    assert found[("144p", 16)] == pytest.approx(0.25, abs=0.03)
    assert fractions({"480p": {16: (0.5, 1), 32: (0.0, None)}}, 40) == {("480p", 32): 0, ("480p", 16): 0}


def test_resolution_names_ignore_case():
    assert Buckets({"4K": {1: (1.0, 1)}}).levels[0].resolution == "4k"
    assert Buckets({256: {1: (1.0, 1)}}).levels[0].resolution == "256"


@pytest.mark.parametrize(
    "config, words",
    [
        ({"481p": {1: (1.0, 1)}}, "unknown resolution '481p'; choose from 144p"),
        ({}, "empty"),
        ({"480p": {1: (1.0, None)}}, "batch size should be"),
        ({"480p": {1: (1.5, 2)}}, "should be between 0 and 1"),
        ({"480p": {0: (1.0, 2)}}, "number of frames"),
        ({"480p": {1: 3}}, r"should be \(probability, batch size\)"),
    ],
)
def test_invalid_config_is_rejected(config, words):
    with pytest.raises(ValueError, match=words):
        Buckets(config)


def test_table_counts_samples_and_batches():
    buckets = Buckets({"480p": {1: (1.0, 2), 16: (0.0, None)}})
    sizes = [(1, 480, 854), (1, 480, 854), (1, 640, 640), (20, 480, 854), (1, 100, 100)]
    found = buckets.assign(np.array(sizes))
    assert [line.split() for line in buckets.table(found).splitlines()[1:]] == [
        ["480p", "16", "0", "-", "0", "0"],
        ["480p", "1", "1", "2", "3", "1", "0.56:", "2,", "1.00:", "1"],
        "5 samples, 2 of them in no bucket".split(),
    ]


def samplers_of(golden: dict, **more) -> list[BucketSampler]:
    """One per process."""
    return [
        BucketSampler(
            np.array(golden["rows"]),
            buckets_of(golden),
            golden["frame_interval"],
            rank,
            golden["num_replicas"],
            golden["seed"],
            golden["shuffle"],
            golden["drop_last"],
            **more,
        )
        for rank in range(golden["num_replicas"])
    ]


def rest_of_epoch(sampler: BucketSampler) -> list[list[str]]:
    return [
        [str(sample) for sample in batch.indices] for batch in islice(sampler.upcoming(), len(sampler) - sampler.step)
    ]


@pytest.mark.parametrize("name", case_names("bucket_sampler", FILE))
def test_golden_order(name):
    golden = case(name, FILE)
    for sampler, expected in zip(samplers_of(golden), golden["expect_per_rank"]):
        sampler.load_state_dict(
            {
                **sampler.state_dict(),
                "epoch": golden["epoch"],
                "accessed": golden["start_step"] * golden["num_replicas"],
            }
        )
        assert rest_of_epoch(sampler) == expected


SHUFFLED = case("bucket_sampler_shuffle", FILE)


def make_sampler(rank: int = 0, world_size: int = 1, **more) -> BucketSampler:
    return BucketSampler(np.array(SHUFFLED["rows"]), buckets_of(SHUFFLED), 3, rank, world_size, 42, **more)


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_have_equal_numbers_of_full_batches(drop_last, world_size):
    """Without drop_last a bucket is repeated, even if it is smaller than half a batch."""
    samplers = [make_sampler(rank, world_size, drop_last=drop_last) for rank in range(world_size)]
    assert len({len(sampler) for sampler in samplers}) == 1 and len(samplers[0]) > 1
    seen, sizes = Counter(), {}
    for steps in zip(*(islice(sampler.upcoming(), len(sampler)) for sampler in samplers)):
        positions = np.concatenate([batch.positions for batch in steps])
        assert sorted(positions.tolist()) == list(range(len(positions)))  # no two get the same noise
        for batch in steps:
            shapes = {sample.shape for sample in batch.indices}
            assert len(shapes) == 1
            sizes.setdefault(shapes.pop(), set()).add(len(batch.indices))
            seen.update(sample.number for sample in batch.indices)
    assert all(len(size) == 1 for size in sizes.values()), "batches of a bucket have the same size"
    used = set(np.flatnonzero(samplers[0].assigned(0) != UNUSED).tolist())
    assert set(seen) <= used
    if drop_last:
        assert max(seen.values()) == 1
    else:
        assert set(seen) == used


def test_epochs_differ_in_order_and_buckets():
    sampler = make_sampler()
    upcoming = sampler.upcoming()
    first = [next(upcoming) for _ in range(len(sampler))]
    second = next(upcoming)
    assert [str(sample) for sample in second.indices] == rest_of_epoch(start_of(sampler, 1))[0]
    assert (sampler.assigned(0) != sampler.assigned(1)).any()
    seeds = [str(seed) for batch in [*first, second] for seed in batch.seeds]
    assert len(set(seeds)) == len(seeds)
    assert sampler.step == 0, "prefetching does not advance"


def start_of(sampler: BucketSampler, epoch: int) -> BucketSampler:
    sampler = make_sampler(sampler.rank, sampler.world_size)
    sampler.load_state_dict({**sampler.state_dict(), "epoch": epoch})
    return sampler


@pytest.mark.parametrize("before, after", [(1, 1), (2, 2), (2, 1), (1, 3), (4, 2)])
def test_resume_reads_the_remaining_batches(before, after):
    """Exact with the same number of processes; otherwise only batches of one incomplete step are repeated."""
    samplers = [make_sampler(rank, before) for rank in range(before)]
    taken = []
    for _ in range(2):
        for sampler in samplers:
            taken += [str(sample) for sample in next(sampler.upcoming()).indices]
            sampler.advance()
    state = json.loads(json.dumps(samplers[-1].state_dict()))
    resumed = [make_sampler(rank, after) for rank in range(after)]
    for sampler in resumed:
        sampler.load_state_dict(state)
    if before == after:
        assert [rest_of_epoch(sampler) for sampler in resumed] == [rest_of_epoch(sampler) for sampler in samplers]
    left = [sample for sampler in resumed for batch in rest_of_epoch(sampler) for sample in batch]
    whole = [sample for batch in rest_of_epoch(make_sampler()) for sample in batch]
    assert set(taken) | set(left) <= set(whole)
    again = 2 * before % after
    assert len(set(taken) & set(left)) <= again * 4 and (again or not set(taken) & set(left))


def test_shards_of_a_batch():
    whole = make_sampler(drop_last=False)
    with pytest.raises(ValueError, match="batch of 1 at 480p, 16 frames is not divisible among the sp_size 2"):
        make_sampler(shard=(0, 2))
    config = {"144p": {32: (1.0, 4)}}
    samplers = [BucketSampler(whole.shapes, Buckets(config), 3, shard=shard) for shard in ((0, 1), (0, 2), (1, 2))]
    batch, *shards = [next(sampler.upcoming()) for sampler in samplers]
    for number, shard in enumerate(shards):
        assert shard.indices == batch.indices[number::2] and shard.seeds == batch.seeds[number::2]
        assert shard.positions.tolist() == batch.positions[number::2].tolist()


def test_replacements_are_from_the_same_bucket():
    sampler = make_sampler()
    assigned = sampler.assigned(0)
    for batch in islice(sampler.upcoming(), len(sampler)):
        for sample in batch.indices:
            assert len({assigned[number] for number in (sample.number, *sample.replacements)}) == 1
            own = (assigned == assigned[sample.number]).sum()
            assert len(set(sample.replacements) - {sample.number}) >= min(own - len(batch.indices), MAX_ATTEMPTS) // 2


def test_no_full_batch_raises():
    with pytest.raises(ValueError, match="do not have a full batch for each of 2 processes: 144p 1 1 8 1 0"):
        BucketSampler(np.array([[1, 144, 256]]), Buckets({"144p": {1: (1.0, 8)}}), world_size=2)


def test_changed_data_is_rejected():
    with pytest.raises(ValueError, match="had samples 60, now it is 50"):
        other = BucketSampler(np.array(SHUFFLED["rows"])[:50], buckets_of(SHUFFLED))
        other.load_state_dict(make_sampler().state_dict())


def test_largest_seed_is_valid_in_every_epoch():
    sampler = BucketSampler(np.array([[1, 144, 256]] * 8), Buckets({"144p": {1: (1.0, 2)}}), seed=2**32 - 1)
    for _ in range(2 * len(sampler)):
        sampler.advance()
    assert sampler.epoch == 2
