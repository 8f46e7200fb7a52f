"""IDDPM that trains on the timesteps from which there is most to learn.

Wang et al. 2024, "A Closer Look at Time Steps is Worthy of Triple Speed-Up for Diffusion Model Training" (SpeeD).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from opensora.errors import UserError
from opensora.schedulers.iddpm.sampler import IDDPM

# Slopes of sqrt(1 - ᾱ): timesteps above the first are drawn five times as often as the others; the one with less than
# the second, and those after it, hardly change.
STEEP, FLAT = 1e-4, 5e-5


@dataclass
class IDDPMSpeed(IDDPM):
    """Training only."""

    def __post_init__(self):
        super().__post_init__()
        # Of the float32 table, as published: the step of tanh enlarges what that rounds.
        slopes = np.gradient(self.tables.sqrt_one_minus_alphas_cumprod).astype(np.float64)
        likelihood = np.tanh(1e6 * (slopes - STEEP)) + 1.5
        self.probabilities = likelihood / likelihood.sum()
        self.meaningful_steps = 1 + int(np.argmax(slopes < FLAT))

    def error_weights(self) -> np.ndarray:
        return 1 - self.tables.alphas_cumprod

    def timesteps(self, uniform: np.ndarray) -> np.ndarray:
        """Training timesteps (B,): half of them drawn, and beside each drawn t its mirror |M - t|."""
        batch = len(uniform)
        cumulative = np.cumsum(self.probabilities)
        drawn = np.searchsorted(cumulative / cumulative[-1], uniform[: batch // 2 + 1], side="right")
        return np.concatenate([drawn, np.abs(self.meaningful_steps - drawn)])[:batch].astype(np.int32)

    def sample(self, *args, **kwargs):
        raise UserError("iddpm-speed is for training only: sample with iddpm or dpm-solver")
