"""Samplers whose state is x_t = α_t x_0 + σ_t ε, indexed by the training timestep.

Each step goes from t to t - stride, stride = 1000 // steps, or to the next of the timesteps that a caller chose. With
x_0 and ε from the model's prediction:

    DDIM       x' = α' x_0 + σ' ε                     Song, Meng & Ermon 2020, "Denoising Diffusion Implicit Models",
                                                      eq. 12 with η = 0
    DDPM       x' = mean of q(x' | x, x_0) + noise    Ho, Jain & Abbeel 2020, "Denoising Diffusion Probabilistic
                                                      Models", algorithm 2, eq. 6 and 7
    CogVideoX  DDIM, with a third of the SNR          Yang et al. 2024, "CogVideoX: Text-to-Video Diffusion Models
                                                      with An Expert Transformer"
    PNDM       DDIM with a prediction combined from   Liu et al. 2022, "Pseudo Numerical Methods for Diffusion Models
               several calls                          on Manifolds", algorithm 2
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, Optional

import numpy as np

from opensora.errors import UserError
from opensora.schedulers.base import DiffusionScheduler
from opensora.schedulers.schedule import TRAIN_TIMESTEPS, Array, spaced_timesteps


class TimestepScheduler(DiffusionScheduler):
    """Base of the samplers that step from training timestep to training timestep.

    Given a number of steps, a step is 1000 // steps timesteps long even where rounding spaced `timesteps` slightly
    differently: that is the published behavior. Given timesteps, a step ends at the next of them, the last one past
    timestep 0. A step past timestep 0 ends at `final_alpha_cumprod`.

    clip_sample: clip the predicted x_0 to [-1, 1]; for models of pixels, not of latents.
    """

    whole_timesteps = True

    def __init__(self, seed: Optional[int] = None, clip_sample: bool = False, **options):
        super().__init__(seed, **options)
        self.clip_sample = clip_sample

    @property
    def final_alpha_cumprod(self) -> float:
        return 1.0

    def predicted_x0(self, output: Array, x: Array, alpha: float, sigma: float) -> Array:
        x0 = super().predicted_x0(output, x, alpha, sigma)
        return x0.clip(-1, 1) if self.clip_sample else x0

    def transfer(self, output: Array, x: Array, t: int, next_t: int) -> Array:
        """x moved from t to next_t with the predicted x_0 and noise (Song et al. 2020, eq. 12 with η = 0)."""
        alpha, sigma = self._alpha_sigma(t)
        next_alpha, next_sigma = self._alpha_sigma(next_t)
        x0, noise = self.predicted_x0(output, x, alpha, sigma), self.predicted_noise(output, x, alpha, sigma)
        return next_alpha * x0 + next_sigma * noise

    def set_timesteps(
        self, num_inference_steps: Optional[int] = None, timesteps: Optional[Sequence[float]] = None
    ) -> None:
        super().set_timesteps(num_inference_steps, timesteps)
        if num_inference_steps is not None:
            self._ends = self.timesteps - TRAIN_TIMESTEPS // num_inference_steps

    def _spaced_timesteps(self, count: int) -> np.ndarray:
        return spaced_timesteps(self.options.spacing, count).round()

    def _use_timesteps(self, steps: np.ndarray) -> np.ndarray:
        if self.options.prediction == "epsilon" and self.alphas_cumprod[int(steps[0])] == 0:
            raise UserError(
                f"{type(self).__name__} cannot start from zero SNR with prediction_type epsilon: leave out "
                "rescale_betas_zero_snr, or use a model of prediction_type v_prediction"
            )
        self._ends = np.append(steps[1:], -1)
        return steps

    def _start_and_end(self, index: int) -> tuple[int, int]:
        """The timesteps between which the step at timesteps[index] goes; negative: past timestep 0."""
        return int(self.timesteps[index]), int(self._ends[index])

    def _input_alpha_sigma(self, index: int) -> tuple[float, float]:
        return self._alpha_sigma(int(self.timesteps[index]))

    def _alpha_sigma(self, t: int) -> tuple[float, float]:
        """α and σ of timestep t; those of the final state for a negative t."""
        alpha_cumprod = float(self.alphas_cumprod[t]) if t >= 0 else self.final_alpha_cumprod
        return alpha_cumprod**0.5, (1 - alpha_cumprod) ** 0.5


class DDIM(TimestepScheduler):
    """Deterministic: the predicted noise carries the predicted x_0 to the next timestep."""

    def _step(self, output: Array, index: int, x: Array, sample_noise: Callable[[], Array]) -> Array:
        return self.transfer(output, x, *self._start_and_end(index))


class CogVideoX(DDIM):
    """DDIM with its own betas and a third of their signal-to-noise ratio (Esser et al. 2024, section 5.3.2)."""

    default_betas = ("scaled_linear", 0.00085, 0.012)
    snr_shift = 3.0


class DDPM(TimestepScheduler):
    """Samples the posterior q(x_{t-1} | x_t, x_0); adds noise at every t > 0."""

    def _step(self, output: Array, index: int, x: Array, sample_noise: Callable[[], Array]) -> Array:
        t, next_t = self._start_and_end(index)
        alpha, sigma = self._alpha_sigma(t)
        next_alpha, next_sigma = self._alpha_sigma(next_t)
        alpha_ratio = alpha / next_alpha  # the paper's sqrt(α_t) = sqrt(1 - β_t), over the whole step
        beta = 1 - alpha_ratio**2
        x0 = self.predicted_x0(output, x, alpha, sigma)
        mean = (next_alpha * beta / sigma**2) * x0 + (alpha_ratio * next_sigma**2 / sigma**2) * x
        if t == 0:
            return mean
        return mean + (beta**0.5 * next_sigma / sigma) * sample_noise()


# Weights of the newest prediction, the one before it, ... for the number of predictions available.
ADAMS_BASHFORTH = {
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}
RUNGE_KUTTA = (1 / 6, 1 / 3, 1 / 3, 1 / 6)


class PNDM(TimestepScheduler):
    """Algorithm 2 (F-PNDM): three Runge-Kutta steps of four model calls each, then one call per step (Adams-Bashforth).

    Both methods combine predictions (the paper's gradient part), and `transfer` moves x (its transfer part). As
    published, there is no rescale to zero SNR, and the trajectory ends at timestep 0, where some noise remains.
    Trajectories of fewer than four steps have fewer Runge-Kutta steps.
    """

    can_rescale = False
    history = ("_predictions", "_start", "_mean")
    takes_timesteps = False  # the midpoints of the Runge-Kutta steps are half a stride away from their ends
    _mean: Array  # weighted sum of the predictions of a step's stages

    @property
    def final_alpha_cumprod(self) -> float:
        return float(self.alphas_cumprod[0])

    def _use_timesteps(self, steps: np.ndarray) -> np.ndarray:
        super()._use_timesteps(steps)
        warm_up = min(3, len(steps) - 1)
        self._half_stride = TRAIN_TIMESTEPS // len(steps) // 2
        half = self._half_stride
        stages = [(t, next_t + half, next_t + half, next_t) for t, next_t in zip(steps, steps[1 : warm_up + 1])]
        self._warm_up_calls = 4 * warm_up
        return np.append(np.ravel(stages), steps[warm_up:]).astype(np.float32)

    def _reset(self) -> None:
        super()._reset()
        self._predictions: list[Array] = []  # at the starts of the last steps, newest first
        self._start: Optional[Array] = None

    def _step(self, output: Array, index: int, x: Array, sample_noise: Callable[[], Array]) -> Array:
        stage = index % 4
        if index >= self._warm_up_calls or stage == 0:
            self._predictions = [output, *self._predictions[:3]]
        if index < self._warm_up_calls:
            return self._runge_kutta(output, index, stage, x)
        weights = ADAMS_BASHFORTH[len(self._predictions)]
        combined = sum(weight * prediction for weight, prediction in zip(weights, self._predictions))
        return self.transfer(combined, x, *self._start_and_end(index))

    def _runge_kutta(self, output: Array, index: int, stage: int, x: Array) -> Array:
        """Each stage starts at the start of the step; the first two lead to its midpoint, the others to its end."""
        t = int(self.timesteps[index])
        if stage == 0:
            self._start, self._mean = x, RUNGE_KUTTA[0] * output
        elif self._start is None:
            raise UserError(f"PNDM cannot start at timestep {t}, in the middle of a step")
        else:
            self._mean = self._mean + RUNGE_KUTTA[stage] * output
        prediction = self._mean if stage == 3 else output
        next_t = t - self._half_stride if stage in (0, 2) else t
        return self.transfer(prediction, self._start, int(self.timesteps[index - stage]), next_t)
