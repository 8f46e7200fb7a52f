"""Monitors of the denoising loop: they see every step, may end the loop, and may continue an interrupted one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Callable, NamedTuple, Optional, Protocol

import numpy as np
from mindspore import Tensor

from opensora.schedulers import Scheduler

STEP, LATENTS, SAMPLER = "step", "latents", "sampler."


class Cancelled(Exception):
    """A monitor ends the denoising."""


class StepDone(NamedTuple):
    """A step of the sampler.

    Attributes:
        step: number of the steps that are done, from 1.
        steps: number of all steps.
        predicted_x0: () -> the clean latents (B, C, T, H, W) that the model predicts at this step.
        state: () -> the state to continue from after this step; None with step caching, whose state cannot be saved.
    """

    step: int
    steps: int
    predicted_x0: Callable[[], Tensor]
    state: Optional[Callable[[], dict[str, np.ndarray]]]


class Monitor(Protocol):
    """Watches the denoising of one video. All processes that make the video have one."""

    def resume(self) -> Optional[Mapping[str, np.ndarray]]:
        """The state to continue from, the same in all processes; None: start with the first step."""

    def after_step(self, done: StepDone) -> None:
        """Called after every step. Raises Cancelled to end the denoising."""


def denoising_state(step: int, latents: Tensor, scheduler: Scheduler) -> dict[str, np.ndarray]:
    """The state after `step` steps: arrays by name."""
    sampler = {SAMPLER + name: _numpy(array) for name, array in scheduler.state_dict().items()}
    return {STEP: np.array(step), LATENTS: _numpy(latents), **sampler}


def restore(state: Mapping[str, np.ndarray], scheduler: Scheduler) -> tuple[int, Tensor]:
    """The number of steps that are done, and the latents; the scheduler continues there."""
    found = {name[len(SAMPLER) :]: array for name, array in state.items() if name.startswith(SAMPLER)}
    scheduler.load_state_dict({name: Tensor(array) if array.ndim else array for name, array in found.items()})
    return int(state[STEP]), Tensor(state[LATENTS])


def _numpy(array) -> np.ndarray:
    return array.asnumpy() if isinstance(array, Tensor) else np.asarray(array)
