"""Solvers with a memory whose state is x_t: they solve the linear part of the flow exactly and fit the model's part."""

from __future__ import annotations

import numpy as np

from opensora.errors import UserError
from opensora.schedulers.arrays import Array
from opensora.schedulers.noise_schedule import spaced_timesteps
from opensora.schedulers.sigma_space import SigmaScheduler, variance_preserving


class ExponentialScheduler(SigmaScheduler):
    """Runs end at `final_sigma`, so that no timestep is spent on t = 0 (leading and linspace)."""

    @property
    def spacing(self) -> str:
        return self.options.spacing

    def _run_timesteps(self, count: int) -> np.ndarray:
        timesteps = spaced_timesteps(self.spacing, count, skip_zero=True).round()
        if len(np.unique(timesteps)) < count:
            raise UserError(
                f"{type(self).__name__} can't take {count} different steps with {self.spacing} spacing: choose fewer"
            )
        self._choose_sigmas(timesteps)
        return timesteps

    def _start_run(self) -> None:
        super()._start_run()
        self._previous = None  # the prediction of the step before

    def _is_last(self, index: int) -> bool:
        return index == len(self.timesteps) - 1


def step_by_data(x: Array, x0: Array, sigma: float, next_sigma: float) -> Array:
    """x_t carried from ratio sigma to next_sigma while the model's x_0 stays what it is.

    Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", eq. 9 with k = 1.
    """
    alpha, _ = variance_preserving(sigma)
    next_alpha, _ = variance_preserving(next_sigma)
    kept = next_sigma / sigma
    return (next_alpha / alpha * kept) * x + (next_alpha * (1 - kept)) * x0
