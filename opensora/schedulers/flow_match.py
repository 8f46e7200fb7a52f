"""Rectified flow: the state is x_σ = (1 - σ) x_0 + σ ε with σ = t / 1000, on straight lines from data to noise.

The model predicts the constant velocity dx/dσ = ε - x_0, and Euler's method integrates it: x' = x + (σ' - σ) v.

Liu et al. 2023, "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow"; Lipman et al.
2023, "Flow Matching for Generative Modeling".
"""

from __future__ import annotations

from typing import Callable, Union

import numpy as np

from opensora.schedulers.base import Scheduler
from opensora.schedulers.parameterization import FLOW
from opensora.schedulers.schedule import TRAIN_TIMESTEPS, Array, float32_like, per_sample


class FlowMatchEulerDiscrete(Scheduler):
    """Timesteps decrease evenly from 1000 to 1 and may be fractions.

    The schedule options have no effect: there are no betas, no other spacing and no other prediction type.
    """

    timestep_range = (1, TRAIN_TIMESTEPS)

    def _spaced_timesteps(self, count: int) -> np.ndarray:
        return np.linspace(TRAIN_TIMESTEPS, 1, count)

    def _use_timesteps(self, steps: np.ndarray) -> np.ndarray:
        self.sigmas = np.append(steps, 0) / TRAIN_TIMESTEPS
        return steps

    @property
    def prediction(self) -> str:
        return FLOW

    def _input_alpha_sigma(self, index: int) -> tuple[float, float]:
        return 1 - self.sigmas[index], self.sigmas[index]

    def _step(self, output: Array, index: int, x: Array, sample_noise: Callable[[], Array]) -> Array:
        return x + float(self.sigmas[index + 1] - self.sigmas[index]) * output

    def add_noise(self, x0: Array, noise: Array, t: Union[float, Array]) -> Array:
        """(1 - σ) x0 + σ noise for t from 0 to 1000, fractions included."""
        sigma = per_sample(t, x0) / TRAIN_TIMESTEPS
        return (1 - sigma) * float32_like(x0, x0) + sigma * float32_like(noise, x0)

    def get_velocity(self, x0: Array, noise: Array, t: Union[float, Array]) -> Array:
        """noise - x0, the same at every t."""
        return float32_like(noise, x0) - float32_like(x0, x0)
