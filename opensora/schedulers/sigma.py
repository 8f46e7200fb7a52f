"""Samplers of the probability flow in the noise-to-signal ratio σ = sqrt((1 - ᾱ) / ᾱ).

The state is y = x_t / α_t = x_0 + σ ε, and ε is the derivative dy/dσ of the probability-flow ODE (Karras et al. 2022,
"Elucidating the Design Space of Diffusion-Based Generative Models", eq. 1), so that every ODE solver is a sampler. The
model's input is x_t = α y, α = 1 / sqrt(σ² + 1). A step goes from σ to σ', with the derivative d at σ and d' at the
second stage:

    EulerDiscrete           y + (σ' - σ) d             EDM, algorithm 1 without its correction
    EulerAncestralDiscrete  y + (σd - σ) d + σu noise   Song et al. 2021, "Score-Based Generative Modeling through
                                                       SDEs", eq. 47
    HeunDiscrete            y + (σ' - σ) (d + d') / 2  EDM, algorithm 1 (deterministic)
    KDPM2AncestralDiscrete  y + (σd - σ) d' + σu noise  Lu et al. 2022, "DPM-Solver: A Fast ODE Solver for Diffusion
                                                       Probabilistic Model Sampling", algorithm 1 with r = 1/2

Ancestral steps follow the ODE down to σd = σ'² / σ, then add noise of σu = σ' sqrt(1 - (σ' / σ)²): together σ'.
"""

from __future__ import annotations

from typing import Callable, Optional, Union

import numpy as np

from opensora.schedulers.base import DiffusionScheduler
from opensora.schedulers.schedule import Array, float32_like, gather, spaced_timesteps


def alpha_sigma(sigma: float) -> tuple[float, float]:
    """α and α σ, the coefficients of x_t = α x_0 + (α σ) ε, for a noise-to-signal ratio σ."""
    alpha = (sigma**2 + 1) ** -0.5
    return alpha, alpha * sigma


def ancestral_sigmas(sigma: float, next_sigma: float) -> tuple[float, float]:
    """σd, where the ODE step ends, and σu, the noise added there (Song et al. 2021, eq. 47)."""
    return next_sigma**2 / sigma, next_sigma * (1 - (next_sigma / sigma) ** 2) ** 0.5


class SigmaScheduler(DiffusionScheduler):
    """`sigmas` (n + 1,) are the ratios between which the sampler steps; the last is `final_sigma`."""

    last_alpha_cumprod = 2.0**-24  # as published: σ = 4096 instead of infinity

    def __init__(self, seed: Optional[int] = None, **options):
        super().__init__(seed, **options)
        sigmas = np.sqrt((1 - self.alphas_cumprod) / self.alphas_cumprod)
        # The rescale leaves a few ᾱ before the last below the last one's floor. There σ would increase along a
        # trajectory of 250 steps or more, and ancestral steps would take the root of a negative number. Interpolate.
        valid = np.flatnonzero(self.alphas_cumprod >= self.last_alpha_cumprod)
        self._training_sigmas = np.interp(np.arange(len(sigmas)), valid, sigmas[valid])
        self.sigmas = self._training_sigmas[::-1]

    @property
    def final_sigma(self) -> float:
        return 0.0

    def _input_alpha_sigma(self, index: int) -> tuple[float, float]:
        return alpha_sigma(self._sigma(index))

    def _sigma(self, index: int) -> float:
        """σ of the state at timesteps[index]; one past the last index is the end of the trajectory."""
        return float(self.sigmas[index])

    def _use_timesteps(self, steps: np.ndarray) -> np.ndarray:
        sigmas = np.interp(steps, np.arange(len(self._training_sigmas)), self._training_sigmas)
        self.sigmas = np.append(sigmas, self.final_sigma)
        return steps


class ProbabilityFlowScheduler(SigmaScheduler):
    """Base of the samplers whose state is y; the model's input is x_t = α y."""

    def _spaced_timesteps(self, count: int) -> np.ndarray:
        return spaced_timesteps(self.options.spacing, count)

    @property
    def init_noise_sigma(self) -> float:
        """Standard deviation of the initial state; leading spacing starts with signal left, whose variance is added."""
        sigma = float(self.sigmas[0])
        return (sigma**2 + 1) ** 0.5 if self.options.spacing == "leading" else sigma

    def scale_model_input(self, x: Array, t: float) -> Array:
        return x * alpha_sigma(self._sigma(self._index(t)))[0]

    def add_noise(self, x0: Array, noise: Array, t: Union[int, Array]) -> Array:
        """x0 + σ_t noise: the state y, which `scale_model_input` turns into x_t."""
        return float32_like(x0, x0) + gather(self._training_sigmas, t, x0) * float32_like(noise, x0)

    def derivative(self, output: Array, y: Array, sigma: float) -> Array:
        """dy/dσ, the predicted noise."""
        alpha, scaled_sigma = alpha_sigma(sigma)
        return self.predicted_noise(output, alpha * y, alpha, scaled_sigma)


class EulerDiscrete(ProbabilityFlowScheduler):
    """Euler's method on dy = ε dσ, to σ = 0."""

    def _step(self, output: Array, index: int, x: Array, sample_noise: Callable[[], Array]) -> Array:
        sample_noise()  # the published sampler draws noise and does not use it; later draws stay aligned with it
        sigma, next_sigma = self._sigma(index), self._sigma(index + 1)
        return x + (next_sigma - sigma) * self.derivative(output, x, sigma)


class EulerAncestralDiscrete(ProbabilityFlowScheduler):
    """Euler's method with ancestral noise; the sampler of the v1.3 release."""

    def _step(self, output: Array, index: int, x: Array, sample_noise: Callable[[], Array]) -> Array:
        sigma, next_sigma = self._sigma(index), self._sigma(index + 1)
        sigma_down, sigma_up = ancestral_sigmas(sigma, next_sigma)
        return x + (sigma_down - sigma) * self.derivative(output, x, sigma) + sigma_up * sample_noise()


class TwoStageScheduler(ProbabilityFlowScheduler):
    """Base of the solvers with two model calls per step: at σ, then at the end of an Euler step to the next σ.

    Timesteps are t0, t1, t1, t2, t2, ...: each except the first ends one step, then starts another. The step to σ = 0
    has no second stage. As published, there is no rescale to zero SNR.
    """

    history = ("_start",)
    order = 2
    can_rescale = False
    default_betas = ("linear", 0.00085, 0.012)

    def _use_timesteps(self, steps: np.ndarray) -> np.ndarray:
        return np.repeat(super()._use_timesteps(steps), 2)[1:]

    def _sigma(self, index: int) -> float:
        return float(self.sigmas[(index + 1) // 2])

    def _step(self, output: Array, index: int, x: Array, sample_noise: Callable[[], Array]) -> Array:
        derivative = self.derivative(output, x, self._sigma(index))
        if index % 2 == 0:
            self._start = x, derivative
            return x + (self._sigma(index + 1) - self._sigma(index)) * derivative
        sigma, next_sigma = self._sigma(index - 1), self._sigma(index)
        return self._second_stage(*self._start, derivative, sigma, next_sigma, sample_noise)

    def _second_stage(
        self,
        start: Array,
        start_derivative: Array,
        derivative: Array,
        sigma: float,
        next_sigma: float,
        sample_noise: Callable[[], Array],
    ) -> Array:
        """The state at next_sigma, from the state at sigma and the derivatives at both stages."""
        raise NotImplementedError


class HeunDiscrete(TwoStageScheduler):
    """Heun's method: each step uses the mean of the derivatives at its two ends; second order."""

    def _second_stage(self, start, start_derivative, derivative, sigma, next_sigma, sample_noise):
        return start + ((next_sigma - sigma) / 2) * (start_derivative + derivative)


class KDPM2AncestralDiscrete(TwoStageScheduler):
    """The midpoint method in log σ, with ancestral noise.

    The ODE is followed from σ down to σ'² / σ, where σ' is the next ratio: the midpoint in log σ is σ' itself.
    """

    def _step(self, output: Array, index: int, x: Array, sample_noise: Callable[[], Array]) -> Array:
        if index % 2 == 0:
            sample_noise()  # the published sampler draws at both stages and uses the second draw
        return super()._step(output, index, x, sample_noise)

    def _second_stage(self, start, start_derivative, derivative, sigma, next_sigma, sample_noise):
        sigma_down, sigma_up = ancestral_sigmas(sigma, next_sigma)
        return start + (sigma_down - sigma) * derivative + sigma_up * sample_noise()
