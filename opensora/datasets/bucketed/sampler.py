"""The order in which training goes through buckets: each process takes batches of its own, maybe of other buckets."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from opensora.datasets.broken import TRIES
from opensora.datasets.bucketed.buckets import UNUSED, Buckets
from opensora.datasets.sampler import SAMPLE, Batch, Sampler
from opensora.errors import UserError

EPOCHS_WITHOUT_BATCH = 10  # on end, after which there will be none


class BucketSample(NamedTuple):
    """A sample and the shape it is wanted in; `spares` are others of its bucket, which can stand for it."""

    index: int
    frames: int
    height: int
    width: int
    spares: tuple = ()

    def __str__(self) -> str:
        return "-".join(map(str, self[:4]))


class BucketBatch(NamedTuple):
    """Some samples of one bucket; `following` are those behind them in the bucket's order, of this epoch."""

    bucket: int
    samples: np.ndarray
    following: np.ndarray


def epoch_batches(
    assigned: np.ndarray,
    buckets: Buckets,
    rng: np.random.RandomState,
    multiple: int = 1,
    shuffle: bool = True,
    drop_last: bool = True,
) -> list[BucketBatch]:
    """The batches of an epoch in order, their number a multiple of `multiple`.

    What does not fill a batch of its bucket is left out, and so are the last batches that do not fill the multiple;
    without `drop_last` a bucket starts over to fill its last batch, and the epoch to fill the multiple.

    Args:
        assigned: the bucket of each sample, see `Buckets.assign`.
        rng: of the order, first inside of each bucket and then of the batches.
    """
    members = _members(assigned)
    order = []  # of buckets
    for bucket, samples in members.items():
        size = buckets.batch_size(bucket)
        count = len(samples) // size if drop_last else -(-len(samples) // size)
        samples = np.resize(samples, count * size)  # np.resize starts over where samples run out
        members[bucket] = samples[rng.permutation(len(samples))] if shuffle else samples
        order += [bucket] * count
    if shuffle:
        order = np.array(order, int)[rng.permutation(len(order))].tolist()
    wanted = len(order) // multiple * multiple if drop_last else -(-len(order) // multiple) * multiple
    taken = dict.fromkeys(members, 0)
    batches = []
    for bucket in np.resize(np.array(order, int), wanted).tolist():
        size, samples = buckets.batch_size(bucket), members[bucket]
        places = np.arange(taken[bucket], taken[bucket] + size + TRIES) % len(samples)
        batches.append(BucketBatch(bucket, samples[places[:size]], samples[places[size:]]))
        taken[bucket] += size
    return batches


def _members(assigned: np.ndarray) -> dict[int, np.ndarray]:
    """Bucket -> its samples, the bucket seen first before the others."""
    used = np.flatnonzero(assigned != UNUSED)
    numbers, first = np.unique(assigned[used], return_index=True)
    order = np.argsort(assigned[used], kind="stable")
    groups = np.split(used[order], np.searchsorted(assigned[used][order], numbers[1:]))
    return {int(numbers[place]): groups[place] for place in np.argsort(first)}


class BucketSampler(Sampler):
    """Goes through the buckets epoch after epoch, each in another order and with other draws, without end.

    All processes build it with the same arguments but `rank` and `shard`. Step i gives rank r the batch i * world_size
    + r of the epoch, so all have as many. The state is the same on all of them; loaded on another number of processes
    it goes on with the batches that are left, after up to that number were taken twice.

    Args:
        shapes: (N, 3) frames, height and width of the samples.
        frame_interval: a clip is so many times as long in its video.
        rank, world_size: of the process, and how many read different batches.
        shard: (number, of how many): processes that share a batch take every so many-th sample of it.

    Raises:
        UserError: no bucket has a batch, or a batch size that does not divide among those that share it.
    """

    def __init__(
        self,
        shapes: np.ndarray,
        buckets: Buckets,
        frame_interval: int = 1,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        shard: tuple[int, int] = (0, 1),
    ):
        self.shapes, self.buckets, self.frame_interval = np.asarray(shapes), buckets, frame_interval
        self.rank, self.world_size, self.shard = rank, world_size, shard
        self.seed, self.shuffle, self.drop_last = seed, shuffle, drop_last
        for level in buckets.levels:
            if level.batch_size and level.batch_size % shard[1]:
                raise UserError(
                    f"bucket_config: the batch of {level.batch_size} at {level.resolution}, "
                    f"{level.frames} frames does not divide among the sp_size {shard[1]} processes that "
                    f"share it"
                )
        self._start_epoch(0)

    def __len__(self) -> int:
        """Steps of the present epoch, done and to come."""
        return len(self._batches) // self.world_size

    @property
    def step(self) -> int:
        """Steps of the present epoch that were taken."""
        return self._step

    def advance(self) -> None:
        self._step += 1
        if self._step == len(self):
            self._start_epoch(self.epoch + 1)

    def assigned(self, epoch: int) -> np.ndarray:
        """The bucket of every sample in an epoch."""
        return self.buckets.assign(*self.shapes.T, self.frame_interval, self.seed + epoch)

    def state_dict(self) -> dict:
        """`accessed` counts the batches that all processes took in this epoch."""
        return {
            "samples": len(self.shapes),
            "seed": self.seed,
            "epoch": self.epoch,
            "accessed": self._step * self.world_size,
        }

    def load_state_dict(self, state: dict) -> None:
        """Continues where `state_dict` was asked for, with the same data and buckets.

        Raises:
            UserError: the data or the seed has changed.
        """
        for name, value in (("samples", len(self.shapes)), ("seed", self.seed)):
            if state[name] != value:
                raise UserError(
                    f"the run that is resumed had {name} {state[name]}, now it is {value}: resume it with "
                    f"its data and seed, begin a new run from its weights, or add "
                    f"--allow_changed_arguments"
                )
        self._start_epoch(state["epoch"])
        self._step = state["accessed"] // self.world_size
        if self._step >= len(self):
            self._start_epoch(self.epoch + 1)

    def _start_epoch(self, first: int) -> None:
        """The next epoch from `first` on that has a batch for every process."""
        for epoch in range(first, first + EPOCHS_WITHOUT_BATCH):
            assigned = self.assigned(epoch)
            rng = np.random.RandomState((self.seed + epoch) % 2**32)
            self._batches = epoch_batches(assigned, self.buckets, rng, self.world_size, self.shuffle, self.drop_last)
            self.epoch, self._step = epoch, 0
            if self._batches:
                return
        rows = "; ".join(" ".join(row.split()) for row in self.buckets.table(assigned).splitlines()[1:])
        raise UserError(
            f"the buckets do not have a full batch for each of {self.world_size} processes: {rows}; "
            f"smaller batches, other buckets or more data are needed"
        )

    def _batch(self) -> Batch:
        first = self._step * self.world_size
        before = sum(len(batch.samples) for batch in self._batches[first : first + self.rank])
        bucket, samples, following = self._batches[first + self.rank]
        chosen = range(self.shard[0], len(samples), self.shard[1])
        spares = tuple(following.tolist())
        indices = [BucketSample(int(samples[place]), *self.buckets.shape(bucket), spares) for place in chosen]
        seeds = [[self.seed, self.epoch, SAMPLE, first + self.rank, place] for place in chosen]
        return Batch(indices, before + np.array(chosen), seeds)
