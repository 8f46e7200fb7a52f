"""The order in which training goes through a dataset: what each process reads at each step."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from opensora.errors import UserError

ORDER, SAMPLE = 0, 1  # what a generator is for, part of its seed


class Batch(NamedTuple):
    """What one process reads for one step."""

    indices: Sequence  # (B,) numbers of samples, or what else the dataset names them by
    positions: np.ndarray  # (B,) their places among the samples of all processes in this step
    seeds: list  # (B,) what the random choices of each sample follow from


def group(labels: np.ndarray, fewest: int = 1) -> list[np.ndarray]:
    """The places of equal labels (0, 1, 2, ... by first appearance), the largest group first, of equals the first seen.

    Groups smaller than `fewest` are left out.
    """
    sizes = np.bincount(labels)
    groups = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])
    return sorted((group for group in groups if len(group) >= max(1, fewest)), key=len, reverse=True)


def epoch_steps(buckets: Sequence[np.ndarray], samples_per_step: int, rng: np.random.Generator) -> np.ndarray:
    """Every sample of every bucket at least once: (steps, samples_per_step), a step from one bucket alone.

    Each bucket is shuffled and cut into steps, what lacks in its last step taken from its beginning; then the steps
    are shuffled.
    """
    steps = np.concatenate([_cut(rng.permutation(bucket), samples_per_step) for bucket in buckets])
    return steps[rng.permutation(len(steps))]


def _cut(samples: np.ndarray, size: int) -> np.ndarray:
    return np.resize(samples, (-(-len(samples) // size), size))  # np.resize starts over where samples run out


class Sampler:
    """What a `Loader` follows. `state_dict` and `load_state_dict` store and restore the place of the next step."""

    def upcoming(self) -> Iterator[Batch]:
        """The batches of this process from here on, without taking them: readers may look ahead."""
        ahead = copy.copy(self)
        while True:
            yield ahead._batch()
            ahead.advance()

    def advance(self) -> None:
        """Takes one step."""
        raise NotImplementedError

    def _batch(self) -> Batch:
        """The batch of this process in the next step."""
        raise NotImplementedError


class BatchSampler(Sampler):
    """Goes through the dataset epoch after epoch, each in another order, without end.

    All processes build it with the same arguments but `rank`, and get parts of the same steps: sample k of a step goes
    to process k modulo `world_size`. The state is the same on all of them, and after it was loaded on another
    number of processes the samples of the epoch that are left are taken, each once.

    Args:
        buckets: numbers of the samples that may share a step.
        batch_size: samples of one process in one step.
        rank, world_size: of the process and of all that read different samples.
        seed: of the order and of the samples' random choices.
    """

    def __init__(
        self, buckets: Sequence[np.ndarray], batch_size: int, rank: int = 0, world_size: int = 1, seed: int = 0
    ):
        self.buckets, self.batch_size, self.seed = buckets, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self._start_epoch(0, [])

    def __len__(self) -> int:
        """Steps of the present epoch, done and to come."""
        return self._done_before + len(self._steps)

    @property
    def step(self) -> int:
        """Steps of the present epoch that were taken."""
        return self._done_before + self._step

    def advance(self) -> None:
        self._step += 1
        if self._step == len(self._steps):
            self._start_epoch(self.epoch + 1, [])

    def state_dict(self) -> dict:
        """`epoch`, and `taken`: [samples per step, steps] for each number of processes the epoch has run on."""
        return {
            "samples": sum(map(len, self.buckets)),
            "epoch": self.epoch,
            "taken": self._taken + [[self._samples_per_step, self._step]],
        }

    def load_state_dict(self, state: dict) -> None:
        """Continues where `state_dict` was asked for, with the same dataset and seed.

        Raises:
            UserError: the dataset has changed.
        """
        samples = sum(map(len, self.buckets))
        if state["samples"] != samples:
            raise UserError(
                f"the run that is resumed had {state['samples']} samples, now there are {samples}: resume "
                f"it with its data, begin a new run from its weights, or add --allow_changed_arguments"
            )
        *before, (samples_per_step, steps) = state["taken"]
        if samples_per_step != self._samples_per_step:
            before, steps = [*before, [samples_per_step, steps]] if steps else before, 0
        self._start_epoch(state["epoch"], before)
        self._step = steps

    @property
    def _samples_per_step(self) -> int:
        return self.batch_size * self.world_size

    def _start_epoch(self, epoch: int, taken: list) -> None:
        """The order of an epoch of which `taken` was done before with other numbers of samples per step."""
        self.epoch, self._taken, self._step = epoch, [list(entry) for entry in taken], 0
        self._done_before = sum(steps for _, steps in taken)
        self._samples_before = sum(samples * steps for samples, steps in taken)
        left = self.buckets
        for part, (samples_per_step, steps) in enumerate(taken):
            used = epoch_steps(left, samples_per_step, self._order_rng(part))[:steps]
            left = [bucket for bucket in (np.setdiff1d(bucket, used) for bucket in left) if len(bucket)]
        if not left:
            self._start_epoch(epoch + 1, [])
        else:
            self._steps = epoch_steps(left, self._samples_per_step, self._order_rng(len(taken)))

    def _order_rng(self, part: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch, ORDER, part])

    def _batch(self) -> Batch:
        positions = np.arange(self.rank, self._samples_per_step, self.world_size)
        first = self._samples_before + self._step * self._samples_per_step
        seeds = [[self.seed, self.epoch, SAMPLE, first + int(position)] for position in positions]
        return Batch(self._steps[self._step][positions], positions, seeds)
