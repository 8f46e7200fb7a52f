"""Buckets and the order of their batches, against the golden cases of the published code."""

from __future__ import annotations

import json
from collections import Counter
from itertools import islice

import numpy as np
import pytest
from golden_cases import case, case_names

from opensora.datasets.broken import TRIES
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
        assert golden["bucket_index"][level.resolution][str(level.frames)] == level.index
    samples = golden["samples"]
    sizes = np.array([[sample["T"], sample["H"], sample["W"]] for sample in samples])
    intervals = np.array([sample["frame_interval"] for sample in samples])
    for interval in np.unique(intervals):
        found = buckets.assign(*sizes.T, int(interval), golden["base_seed"])
        for i in np.flatnonzero(intervals == interval):
            expected = samples[i]["expect"]
            assert (found[i] == UNUSED) == (expected is None), i
            if expected is not None:
                assert buckets[found[i]] == Bucket(*expected["bucket"])
                assert list(buckets.shape(found[i])) == expected["thw"]
                assert buckets.batch_size(found[i]) == expected["batch_size"]


def shares(config: dict, frames: int, count: int = 4000) -> dict:
    """Which part of `count` equal samples of 1080p comes into which level."""
    buckets = Buckets(config)
    found = buckets.assign(*(np.full(count, size) for size in (frames, 1080, 1920)), seed=3)
    return {(level.resolution, level.frames): sum(counts.values()) / count for level, counts in buckets.counts(found)}


def test_two_probabilities():
    """The second decides between the numbers of frames of one resolution, the first between resolutions."""
    config = {"480p": {64: ((0.5, 0.25), 1), 16: ((1.0, 1.0), 2)}, "144p": {16: (1.0, 4)}}
    found = shares(config, 100)
    assert found[("480p", 64)] == pytest.approx(0.25 * 0.5, abs=0.02)
    assert found[("480p", 16)] == pytest.approx(0.75, abs=0.02)
    assert found[("144p", 16)] == pytest.approx(0.25 * 0.5, abs=0.02)


def test_nothing_is_forced_into_a_bucket():
    found = shares({"480p": {16: (0.5, 1), 32: (0.0, None)}, "144p": {16: (0.5, 1)}}, 20)
    assert found[("480p", 16)] == pytest.approx(0.5, abs=0.03)
    assert found[("144p", 16)] == pytest.approx(0.25, abs=0.03)
    assert shares({"480p": {16: (0.5, 1), 32: (0.0, None)}}, 40) == {("480p", 32): 0, ("480p", 16): 0}


def test_names_in_any_letters():
    assert Buckets({"4K": {1: (1.0, 1)}}).levels[0].resolution == "4k"
    assert Buckets({256: {1: (1.0, 1)}}).levels[0].resolution == "256"


@pytest.mark.parametrize(
    "config, words",
    [
        ({"481p": {1: (1.0, 1)}}, "no resolution '481p'; choose from 144p"),
        ({}, "empty"),
        ({"480p": {1: (1.0, None)}}, "batch size should be"),
        ({"480p": {1: (1.5, 2)}}, "lies between 0 and 1"),
        ({"480p": {0: (1.0, 2)}}, "number of frames"),
        ({"480p": {1: 3}}, r"should be \(probability, batch size\)"),
    ],
)
def test_configs_that_cannot_be(config, words):
    with pytest.raises(ValueError, match=words):
        Buckets(config)


def test_table():
    buckets = Buckets({"480p": {1: (1.0, 2), 16: (0.0, None)}})
    found = buckets.assign(
        np.array([1, 1, 1, 20, 1]), np.array([480, 480, 640, 480, 100]), np.array([854, 854, 640, 854, 100])
    )
    assert [line.split() for line in buckets.table(found).splitlines()[1:]] == [
        ["480p", "16", "0", "-", "0", "0"],
        ["480p", "1", "1", "2", "3", "1", "0.56:", "2,", "1.00:", "1"],
        "5 samples, 2 of them in no bucket".split(),
    ]


def samplers_of(golden: dict, **more) -> list[BucketSampler]:
    """One for each process."""
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
def test_every_rank_has_as_many_full_batches_and_nothing_is_read_twice(drop_last, world_size):
    """Without drop_last a bucket starts over, also where it is smaller than half a batch."""
    samplers = [make_sampler(rank, world_size, drop_last=drop_last) for rank in range(world_size)]
    assert len({len(sampler) for sampler in samplers}) == 1 and len(samplers[0]) > 1
    seen, sizes = Counter(), {}
    for steps in zip(*(islice(sampler.upcoming(), len(sampler)) for sampler in samplers)):
        positions = np.concatenate([batch.positions for batch in steps])
        assert sorted(positions.tolist()) == list(range(len(positions)))  # no two of a step draw the same noise
        for batch in steps:
            shapes = {sample[1:4] for sample in batch.indices}
            assert len(shapes) == 1
            sizes.setdefault(shapes.pop(), set()).add(len(batch.indices))
            seen.update(sample.index for sample in batch.indices)
    assert all(len(size) == 1 for size in sizes.values()), "batches of a bucket are of one size"
    used = set(np.flatnonzero(samplers[0].assigned(0) != UNUSED).tolist())
    assert set(seen) <= used
    if drop_last:
        assert max(seen.values()) == 1
    else:
        assert set(seen) == used


def test_epochs_differ_and_have_buckets_of_their_own():
    sampler = make_sampler()
    upcoming = sampler.upcoming()
    first = [next(upcoming) for _ in range(len(sampler))]
    second = next(upcoming)
    assert [str(sample) for sample in second.indices] == rest_of_epoch(start_of(sampler, 1))[0]
    assert (sampler.assigned(0) != sampler.assigned(1)).any()
    seeds = [str(seed) for batch in [*first, second] for seed in batch.seeds]
    assert len(set(seeds)) == len(seeds)
    assert sampler.step == 0, "looking ahead takes nothing"


def start_of(sampler: BucketSampler, epoch: int) -> BucketSampler:
    sampler = make_sampler(sampler.rank, sampler.world_size)
    sampler.load_state_dict({**sampler.state_dict(), "epoch": epoch})
    return sampler


@pytest.mark.parametrize("before, after", [(1, 1), (2, 2), (2, 1), (1, 3), (4, 2)])
def test_resume(before, after):
    """On as many processes it is exact; on others only batches of the step that was cut through come again."""
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


def test_processes_that_share_a_batch():
    whole = make_sampler(drop_last=False)
    with pytest.raises(ValueError, match="batch of 1 at 480p, 16 frames does not divide among the sp_size 2"):
        make_sampler(shard=(0, 2))
    config = {"144p": {32: (1.0, 4)}}
    whole, *parts = [BucketSampler(whole.shapes, Buckets(config), 3, shard=part) for part in ((0, 1), (0, 2), (1, 2))]
    batch, *shares = [next(sampler.upcoming()) for sampler in (whole, *parts)]
    for number, share in enumerate(shares):
        assert share.indices == batch.indices[number::2] and share.seeds == batch.seeds[number::2]
        assert share.positions.tolist() == batch.positions[number::2].tolist()


def test_spares_are_others_of_the_bucket():
    sampler = make_sampler()
    assigned = sampler.assigned(0)
    for batch in islice(sampler.upcoming(), len(sampler)):
        for sample in batch.indices:
            assert len({assigned[number] for number in (sample.index, *sample.spares)}) == 1
            own = (assigned == assigned[sample.index]).sum()
            assert len(set(sample.spares) - {sample.index}) >= min(own - len(batch.indices), TRIES) // 2


def test_no_batch_at_all():
    with pytest.raises(ValueError, match="do not have a full batch for each of 2 processes: 144p 1 1 8 1 0"):
        BucketSampler(np.array([[1, 144, 256]]), Buckets({"144p": {1: (1.0, 8)}}), world_size=2)


def test_changed_data_or_seed_is_refused():
    with pytest.raises(ValueError, match="had samples 60, now it is 50"):
        other = BucketSampler(np.array(SHUFFLED["rows"])[:50], buckets_of(SHUFFLED))
        other.load_state_dict(make_sampler().state_dict())


def test_the_largest_seed_orders_every_epoch():
    sampler = BucketSampler(np.array([[1, 144, 256]] * 8), Buckets({"144p": {1: (1.0, 2)}}), seed=2**32 - 1)
    for _ in range(2 * len(sampler)):
        sampler.advance()
    assert sampler.epoch == 2
