"""The order of samples in training: what each process reads at each step."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Union

import numpy as np

from opensora.errors import UserError

ORDER, SAMPLE = 0, 1  # purpose of a generator, a component of its seed


class BatchRequest(NamedTuple):
    """What one process reads for one step."""

    indices: Union[Sequence, np.ndarray]  # (B,) sample numbers, or other keys that the dataset accepts
    positions: np.ndarray  # (B,) positions among the samples of all processes in this step
    seeds: list  # (B,) seeds of the samples' random choices


def group(labels: np.ndarray, min_size: int = 1) -> list[np.ndarray]:
    """The indices of equal labels, sorted by group size in descending order; ties keep the order of the labels.

    Args:
        labels: (N,) int, numbered 0, 1, 2, ... by first appearance.
        min_size: smaller groups are dropped.
    """
    sizes = np.bincount(labels)
    groups = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])
    return sorted((group for group in groups if len(group) >= max(1, min_size)), key=len, reverse=True)


def epoch_steps(buckets: Sequence[np.ndarray], samples_per_step: int, rng: np.random.Generator) -> np.ndarray:
    """The steps of an epoch, (steps, samples_per_step): each step from a single bucket, every sample at least once.

    Each bucket is shuffled and divided into steps; its last step is filled up with its first samples. Then the steps
    are shuffled.
    """
    steps = np.concatenate([_divide(rng.permutation(bucket), samples_per_step) for bucket in buckets])
    return steps[rng.permutation(len(steps))]


def _divide(samples: np.ndarray, size: int) -> np.ndarray:
    return np.resize(samples, (-(-len(samples) // size), size))  # np.resize repeats from the start


class Sampler:
    """An endless list of batches for a `Loader`, divided into epochs; its position can be saved and restored."""

    epoch: int

    def __len__(self) -> int:
        """Steps of the current epoch, completed and remaining."""
        raise NotImplementedError

    @property
    def step(self) -> int:
        """Completed steps of the current epoch."""
        raise NotImplementedError

    def upcoming(self) -> Iterator[BatchRequest]:
        """The batches of this process from the current step on. Iterating does not advance the sampler."""
        ahead = copy.copy(self)
        while True:
            yield ahead._batch()
            ahead.advance()

    def advance(self) -> None:
        """Moves to the next step."""
        raise NotImplementedError

    def state_dict(self) -> dict:
        """The position; the same on all processes."""
        raise NotImplementedError

    def load_state_dict(self, state: dict) -> None:
        """Restores a position; raises UserError if the data has changed."""
        raise NotImplementedError

    def _batch(self) -> BatchRequest:
        """The batch of this process in the current step."""
        raise NotImplementedError


class BatchSampler(Sampler):
    """Iterates over a dataset without end, in a new random order every epoch.

    All processes create it with the same arguments except `rank`. They share the same steps: sample k of a step goes
    to process k modulo `world_size`. The state is the same on all processes. It can be loaded with a different
    world_size; the remaining samples of the epoch are then read once each.

    Args:
        buckets: sample numbers that may share a step.
        batch_size: samples per process and step.
        rank, world_size: rank of this process, and number of processes that read different samples.
        seed: of the order and of the samples' random choices.
    """

    def __init__(
        self, buckets: Sequence[np.ndarray], batch_size: int, rank: int = 0, world_size: int = 1, seed: int = 0
    ):
        self.buckets, self.batch_size, self.seed = buckets, batch_size, seed
        self.rank, self.world_size = rank, world_size
        self._start_epoch(0, [])

    def __len__(self) -> int:
        return self._steps_before + len(self._steps)

    @property
    def step(self) -> int:
        return self._steps_before + self._step

    def advance(self) -> None:
        self._step += 1
        if self._step == len(self._steps):
            self._start_epoch(self.epoch + 1, [])

    def state_dict(self) -> dict:
        """`epoch`, and `taken`: [samples per step, steps] for each number of samples per step used in this epoch."""
        return {
            "samples": sum(map(len, self.buckets)),
            "epoch": self.epoch,
            "taken": self._taken + [[self._samples_per_step, self._step]],
        }

    def load_state_dict(self, state: dict) -> None:
        """Resumes at the position of `state_dict`, given the same dataset and seed.

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
        """Sets the order of an epoch; `taken` lists the steps already done with other numbers of samples per step."""
        self.epoch, self._taken, self._step = epoch, [list(entry) for entry in taken], 0
        self._steps_before = sum(steps for _, steps in taken)
        self._samples_before = sum(samples * steps for samples, steps in taken)
        remaining = list(self.buckets)
        for stage, (samples_per_step, steps) in enumerate(taken):
            used = epoch_steps(remaining, samples_per_step, self._order_rng(stage))[:steps]
            remaining = [bucket for bucket in (np.setdiff1d(bucket, used) for bucket in remaining) if len(bucket)]
        if not remaining:
            self._start_epoch(epoch + 1, [])
        else:
            self._steps = epoch_steps(remaining, self._samples_per_step, self._order_rng(len(taken)))

    def _order_rng(self, stage: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, self.epoch, ORDER, stage])

    def _batch(self) -> BatchRequest:
        positions = np.arange(self.rank, self._samples_per_step, self.world_size)
        first = self._samples_before + self._step * self._samples_per_step
        seeds = [[self.seed, self.epoch, SAMPLE, first + int(position)] for position in positions]
        return BatchRequest(self._steps[self._step][positions], positions, seeds)
