"""Samplers of variance-preserving diffusion: x_t = α_t x_0 + σ_t ε with α_t = sqrt(ᾱ_t), α² + σ² = 1."""

from __future__ import annotations

import warnings
from typing import Optional

import numpy as np

from opensora.errors import UserError
from opensora.schedulers.arrays import Array, float32_like, rows
from opensora.schedulers.base import Scheduler
from opensora.schedulers.noise_schedule import TRAIN_TIMESTEPS, cumulative_alphas, spaced_timesteps


class DiffusionScheduler(Scheduler):
    """`alphas_cumprod` (1000,) holds ᾱ of the training timesteps.

    The state of a run is x_t itself. Subclasses may move their defaults by the class attributes.
    """

    default_betas = ("linear", 1e-4, 0.02)
    snr_shift = 1.0
    # False: the published sampler never rescales; neither do we, so that samples stay the same, but we say so.
    can_rescale = True
    last_alpha_cumprod = 0.0  # with the rescale; solvers that divide by α need more than 0

    def __init__(self, seed: Optional[int] = None, **options):
        super().__init__(seed, **options)
        rescale = self.options.rescale_betas_zero_snr
        if rescale and not self.can_rescale:
            warnings.warn(f"{type(self).__name__} leaves the betas as they are: no rescale to zero SNR", stacklevel=2)
            rescale = False
        schedule, start, end = self.default_betas
        self.alphas_cumprod = cumulative_alphas(
            self.options.beta_schedule or schedule,
            self.options.beta_start or start,
            self.options.beta_end or end,
            self.snr_shift,
            rescale,
        )
        if rescale:
            self.alphas_cumprod[-1] = self.last_alpha_cumprod

    def add_noise(self, x0: Array, noise: Array, t) -> Array:
        """α_t x0 + σ_t noise."""
        alpha, sigma = self._rows(t, x0)
        return alpha * float32_like(x0, x0) + sigma * float32_like(noise, x0)

    def get_velocity(self, x0: Array, noise: Array, t) -> Array:
        """α_t noise - σ_t x0 (Salimans & Ho 2022, "Progressive Distillation", section 4)."""
        alpha, sigma = self._rows(t, x0)
        return alpha * float32_like(noise, x0) - sigma * float32_like(x0, x0)

    def predicted_x0(self, output: Array, x: Array, alpha: float, sigma: float) -> Array:
        """x_0 as the model sees it in x = alpha x_0 + sigma ε."""
        if self.options.prediction == "epsilon":
            return (x - sigma * output) * (1 / alpha)
        if self.options.prediction == "v_prediction":
            return alpha * x - sigma * output
        return output

    def predicted_noise(self, output: Array, x: Array, alpha: float, sigma: float) -> Array:
        """ε as the model sees it in x = alpha x_0 + sigma ε."""
        if self.options.prediction == "epsilon":
            return output
        if self.options.prediction == "v_prediction":
            return alpha * output + sigma * x
        return (x - alpha * output) * (1 / sigma)

    def _rows(self, t, x: Array) -> tuple:
        return rows(np.sqrt(self.alphas_cumprod), t, x), rows(np.sqrt(1 - self.alphas_cumprod), t, x)


class TimestepScheduler(DiffusionScheduler):
    """Samplers that step from training timestep to training timestep.

    A step is `stride` timesteps long even where rounding spaced the run's timesteps a little otherwise: that is the
    published behaviour. A step that would pass timestep 0 ends at `final_alpha_cumprod`.

    clip_sample: clip the predicted x_0 to [-1, 1]; for models of pixels, not of latents.
    """

    final_alpha_cumprod = 1.0

    def __init__(self, seed: Optional[int] = None, clip_sample: bool = False, **options):
        super().__init__(seed, **options)
        self.clip_sample = clip_sample

    def predicted_x0(self, output: Array, x: Array, alpha: float, sigma: float) -> Array:
        x0 = super().predicted_x0(output, x, alpha, sigma)
        return x0.clip(-1, 1) if self.clip_sample else x0

    def transfer(self, output: Array, x: Array, t: int, next_t: int) -> Array:
        """x carried from t to next_t by the noise the model predicts (Song et al. 2020, eq. 12 with η = 0)."""
        alpha, sigma = self._levels(t)
        next_alpha, next_sigma = self._levels(next_t)
        x0, noise = self.predicted_x0(output, x, alpha, sigma), self.predicted_noise(output, x, alpha, sigma)
        return next_alpha * x0 + next_sigma * noise

    def _run_timesteps(self, count: int) -> np.ndarray:
        self.stride = TRAIN_TIMESTEPS // count
        timesteps = spaced_timesteps(self.options.spacing, count).round()
        if self.options.prediction == "epsilon" and self.alphas_cumprod[int(timesteps[0])] == 0:
            raise UserError(
                f"{type(self).__name__} can't start where there is noise alone when the model predicts "
                "noise: leave out rescale_betas_zero_snr, or use a model of prediction_type v_prediction"
            )
        return timesteps

    def _levels(self, t: int) -> tuple[float, float]:
        """α and σ of timestep t."""
        alpha_cumprod = float(self.alphas_cumprod[t]) if t >= 0 else self.final_alpha_cumprod
        return alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5
