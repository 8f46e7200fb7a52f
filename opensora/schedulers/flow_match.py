"""Rectified flow.

Liu et al. 2023, "Flow Straight and Fast: Learning to Generate and Transfer Data with Rectified Flow"; Lipman et al.
2023, "Flow Matching for Generative Modeling".
"""

from __future__ import annotations

import numpy as np

from opensora.schedulers.arrays import Array, float32_like, per_sample
from opensora.schedulers.base import Scheduler
from opensora.schedulers.noise_schedule import TRAIN_TIMESTEPS


class FlowMatchEulerDiscrete(Scheduler):
    """x_σ = (1 - σ) x_0 + σ ε with σ = t / 1000; the model predicts dx/dσ = ε - x_0, and Euler's method follows it.

    Timesteps fall evenly from 1000 to 1 and are fractions. The options are without effect: there are no betas, no
    other spacing and no other prediction.
    """

    def _run_timesteps(self, count: int) -> np.ndarray:
        timesteps = np.linspace(TRAIN_TIMESTEPS, 1, count)
        self.sigmas = np.append(timesteps, 0) / TRAIN_TIMESTEPS
        return timesteps

    def _step(self, output, index, x, draw):
        return x + float(self.sigmas[index + 1] - self.sigmas[index]) * output

    def add_noise(self, x0: Array, noise: Array, t) -> Array:
        """(1 - σ) x0 + σ noise for t from 0 to 1000, fractions too."""
        sigma = per_sample(t, x0) / TRAIN_TIMESTEPS
        return (1 - sigma) * float32_like(x0, x0) + sigma * float32_like(noise, x0)

    def get_velocity(self, x0: Array, noise: Array, t) -> Array:
        """noise - x0, the same at every t."""
        return float32_like(noise, x0) - float32_like(x0, x0)
