"""The order of training over buckets: at each step, every process reads a batch from a single bucket."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from opensora.datasets.broken import MAX_ATTEMPTS
from opensora.datasets.bucketed.buckets import UNUSED, Buckets
from opensora.datasets.sampler import SAMPLE, BatchRequest, Sampler
from opensora.errors import UserError

MAX_EMPTY_EPOCHS = 10  # consecutive epochs without a batch, after which training stops


class BucketSample(NamedTuple):
    """A sample and its target shape; `replacements` are samples of its bucket to use if it cannot be read."""

    number: int
    frames: int
    height: int
    width: int
    replacements: tuple = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.frames, self.height, self.width

    def __str__(self) -> str:
        return "-".join(map(str, self[:4]))


class BucketBatch(NamedTuple):
    """Samples of one bucket; `following` are the next samples of the bucket in the order of this epoch."""

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
    """The batches of an epoch in order.

    Args:
        assigned: the bucket of each sample, see `Buckets.assign`.
        rng: shuffles first inside each bucket, then the batches.
        multiple: the number of batches is a multiple of it.
        drop_last: drops samples that do not fill a batch, and then batches that do not fill the multiple. Otherwise
            buckets and the epoch are filled up from their beginning.
    """
    members = _members(assigned)
    order: list[int] = []  # the bucket of each batch
    for bucket, samples in members.items():
        size = buckets.batch_size(bucket)
        count = len(samples) // size if drop_last else -(-len(samples) // size)
        samples = np.resize(samples, count * size)  # np.resize repeats from the start
        members[bucket] = samples[rng.permutation(len(samples))] if shuffle else samples
        order += [bucket] * count
    if shuffle:
        order = np.array(order, int)[rng.permutation(len(order))].tolist()
    length = len(order) // multiple * multiple if drop_last else -(-len(order) // multiple) * multiple
    used = dict.fromkeys(members, 0)
    batches = []
    for bucket in np.resize(np.array(order, int), length).tolist():
        size, samples = buckets.batch_size(bucket), members[bucket]
        places = np.arange(used[bucket], used[bucket] + size + MAX_ATTEMPTS) % len(samples)
        batches.append(BucketBatch(bucket, samples[places[:size]], samples[places[size:]]))
        used[bucket] += size
    return batches


def _members(assigned: np.ndarray) -> dict[int, np.ndarray]:
    """Bucket -> its samples, ordered by the first sample of each bucket."""
    used = np.flatnonzero(assigned != UNUSED)
    numbers, first = np.unique(assigned[used], return_index=True)
    order = np.argsort(assigned[used], kind="stable")
    groups = np.split(used[order], np.searchsorted(assigned[used][order], numbers[1:]))
    return {int(numbers[place]): groups[place] for place in np.argsort(first)}


class BucketSampler(Sampler):
    """Iterates over the buckets without end; every epoch has a new order and new random bucket assignments.

    All processes create it with the same arguments except `rank` and `shard`. In step i, rank r reads batch
    i * world_size + r of the epoch, so all ranks have the same number of batches. The state is the same on all
    processes. If it is loaded with a different world_size, the remaining batches follow, and at most world_size
    batches are read twice.

    Args:
        shapes: (N, 3) frames, height and width of the samples.
        frame_interval: stride of a clip's frames in its video.
        rank, world_size: rank of this process, and number of processes that read different batches.
        shard: (index, count), for `count` processes that share a batch: each reads every count-th sample of it.

    Raises:
        UserError: no bucket has a full batch, or a batch size is not divisible among the processes that share it.
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
                    f"bucket_config: the batch of {level.batch_size} at {level.resolution}, {level.frames} frames is "
                    f"not divisible among the sp_size {shard[1]} processes that share it"
                )
        self._start_epoch(0)

    def __len__(self) -> int:
        return len(self._batches) // self.world_size

    @property
    def step(self) -> int:
        return self._step

    def advance(self) -> None:
        self._step += 1
        if self._step == len(self):
            self._start_epoch(self.epoch + 1)

    def assigned(self, epoch: int) -> np.ndarray:
        """The bucket of every sample in an epoch."""
        return self.buckets.assign(self.shapes, self.frame_interval, self.seed + epoch)

    def state_dict(self) -> dict:
        """`accessed` is the number of batches that all processes have read in this epoch."""
        return {
            "samples": len(self.shapes),
            "seed": self.seed,
            "epoch": self.epoch,
            "accessed": self._step * self.world_size,
        }

    def load_state_dict(self, state: dict) -> None:
        """Resumes at the position of `state_dict`, given the same data and buckets.

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
        """Starts the next epoch from `first` on that has a batch for every process."""
        for epoch in range(first, first + MAX_EMPTY_EPOCHS):
            assigned = self.assigned(epoch)
            rng = np.random.RandomState((self.seed + epoch) % 2**32)
            self._batches = epoch_batches(assigned, self.buckets, rng, self.world_size, self.shuffle, self.drop_last)
            self.epoch, self._step = epoch, 0
            if self._batches:
                return
        rows = "; ".join(" ".join(row.split()) for row in self.buckets.table(assigned).splitlines()[1:])
        raise UserError(
            f"the buckets do not have a full batch for each of {self.world_size} processes: {rows}; use smaller "
            f"batches, other buckets or more data"
        )

    def _batch(self) -> BatchRequest:
        first = self._step * self.world_size
        before = sum(len(batch.samples) for batch in self._batches[first : first + self.rank])
        bucket, samples, following = self._batches[first + self.rank]
        places = range(self.shard[0], len(samples), self.shard[1])
        frames, height, width = self.buckets.shape(bucket)
        replacements = tuple(following.tolist())
        indices = [BucketSample(int(samples[place]), frames, height, width, replacements) for place in places]
        seeds = [[self.seed, self.epoch, SAMPLE, first + self.rank, place] for place in places]
        return BatchRequest(indices, before + np.array(places), seeds)
