"""Diffusion by its noise-to-signal ratio: y = x_t / α_t = x_0 + σ ε with σ = sqrt((1 - ᾱ) / ᾱ).

In these terms ε is the slope dy/dσ of the probability flow (Karras et al. 2022, "Elucidating the Design Space of
Diffusion-Based Generative Models", eq. 1), so that every solver of ordinary differential equations is a sampler.
"""

from __future__ import annotations

from typing import Optional

import numpy as np

from opensora.schedulers.arrays import Array, float32_like, rows
from opensora.schedulers.diffusion import DiffusionScheduler
from opensora.schedulers.noise_schedule import spaced_timesteps


def variance_preserving(sigma: float) -> tuple[float, float]:
    """α and α σ, the coefficients of x_t = α x_0 + (α σ) ε, for a noise-to-signal ratio σ."""
    alpha = (sigma**2 + 1) ** -0.5
    return alpha, alpha * sigma


def ancestral_split(sigma: float, next_sigma: float) -> tuple[float, float]:
    """Where to go along the flow and how much noise to add there to arrive at next_sigma.

    Ancestral sampling of Song et al. 2021, "Score-Based Generative Modeling through SDEs", eq. 47.
    """
    return next_sigma**2 / sigma, next_sigma * (1 - (next_sigma / sigma) ** 2) ** 0.5


class SigmaScheduler(DiffusionScheduler):
    """`sigmas` (n + 1,) are the ratios between which a run steps; the last is `final_sigma`."""

    last_alpha_cumprod = 2.0**-24  # as published: σ = 4096 in place of infinity

    def __init__(self, seed: Optional[int] = None, **options):
        super().__init__(seed, **options)
        sigmas = np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod)
        # The rescale leaves a few ᾱ before the last below the last's floor, where σ would rise in a run of 250 steps and
        # more, and ancestral steps need the root of a negative number. There σ goes straight to its last value.
        known = np.flatnonzero(self.alphas_cumprod >= self.last_alpha_cumprod)
        self._training_sigmas = np.interp(np.arange(len(sigmas)), known, sigmas[known])
        self.sigmas = self._training_sigmas[::-1]

    @property
    def final_sigma(self) -> float:
        return 0.0

    def _sigma(self, index: int) -> float:
        """σ of the state at timesteps[index]; one past the last, of the end of the run."""
        return float(self.sigmas[index])

    def _choose_sigmas(self, timesteps: np.ndarray) -> None:
        chosen = np.interp(timesteps, np.arange(len(self._training_sigmas)), self._training_sigmas)
        self.sigmas = np.append(chosen, self.final_sigma)


class ProbabilityFlowScheduler(SigmaScheduler):
    """Samplers whose state is y; the model sees x_t = α y."""

    def _run_timesteps(self, count: int) -> np.ndarray:
        timesteps = spaced_timesteps(self.options.spacing, count)
        self._choose_sigmas(timesteps)
        return timesteps

    @property
    def init_noise_sigma(self) -> float:
        """Deviation of the first state; leading spacing starts where there is signal left, whose share is added."""
        sigma = float(self.sigmas[0])
        return (sigma**2 + 1) ** 0.5 if self.options.spacing == "leading" else sigma

    def scale_model_input(self, x: Array, t: float) -> Array:
        return x * variance_preserving(self._sigma(self._index(t)))[0]

    def add_noise(self, x0: Array, noise: Array, t) -> Array:
        """x0 + σ_t noise: the state y, which `scale_model_input` makes x_t."""
        return float32_like(x0, x0) + rows(self._training_sigmas, t, x0) * float32_like(noise, x0)

    def slope(self, output: Array, y: Array, sigma: float) -> Array:
        """dy/dσ, the predicted noise."""
        alpha, scaled_sigma = variance_preserving(sigma)
        return self.predicted_noise(output, alpha * y, alpha, scaled_sigma)
