"""Exponential integrators: multistep and singlestep solvers whose state is x_t = α x_0 + α σ ε.

They solve the linear term of the probability-flow ODE exactly and fit a polynomial to the model's predictions over the
noise-to-signal ratio σ (λ = -log σ is the papers' log-SNR). A step goes from σ to σ', with r = σ' / σ:

    DPM-Solver++  x' = (α' r / α) x + α' (1 - r) D        Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided
                                                          Sampling of Diffusion Probabilistic Models", eq. 9, k = 1
      2M (algorithm 2)  D extrapolates x_0 from this and the previous step, linearly in λ
      2S (algorithm 1)  D interpolates x_0 from two calls within one interval
    DEIS          x' = α' (x / α + ∫ ε dσ)                Zhang & Chen 2023, "Fast Sampling of Diffusion Models with
                                                          Exponential Integrator", section 3.4, ρAB
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Callable, Optional

import numpy as np

from opensora.errors import UserError
from opensora.schedulers.schedule import TRAIN_TIMESTEPS, Array, spaced_timesteps
from opensora.schedulers.sigma import SigmaScheduler, alpha_sigma


class ExponentialScheduler(SigmaScheduler):
    """Trajectories end at `final_sigma`, so that no timestep is spent on t = 0 (leading and linspace)."""

    history: tuple[str, ...] = ("_previous",)

    @property
    def spacing(self) -> str:
        return self.options.spacing

    def _spaced_timesteps(self, count: int) -> np.ndarray:
        timesteps = spaced_timesteps(self.spacing, count, skip_zero=True).round()
        if len(np.unique(timesteps)) < count:
            raise UserError(
                f"{type(self).__name__} cannot take {count} distinct steps with {self.spacing} spacing: choose fewer"
            )
        return timesteps

    def _reset(self) -> None:
        super()._reset()
        self._previous: Optional[Array] = None  # the prediction of the previous step

    def _is_last(self, index: int) -> bool:
        return index == len(self.timesteps) - 1


def first_order_step(x: Array, x0: Array, sigma: float, next_sigma: float) -> Array:
    """x_t moved from ratio sigma to next_sigma with a constant x0 (Lu et al. 2022, DPM-Solver++, eq. 9 with k = 1)."""
    alpha, _ = alpha_sigma(sigma)
    next_alpha, _ = alpha_sigma(next_sigma)
    ratio = next_sigma / sigma
    return (next_alpha / alpha * ratio) * x + (next_alpha * (1 - ratio)) * x0


class DPMSolverMultistep(ExponentialScheduler):
    """DPM-Solver++(2M), algorithm 2. The first and the last step are of first order."""

    def _step(self, output: Array, index: int, x: Array, sample_noise: Callable[[], Array]) -> Array:
        sigma, next_sigma = self._sigma(index), self._sigma(index + 1)
        x0 = self.predicted_x0(output, x, *alpha_sigma(sigma))
        midpoint = x0
        if self._previous is not None and not self._is_last(index):
            ratio = log(self._sigma(index - 1) / sigma) / log(sigma / next_sigma)
            midpoint = x0 + (0.5 / ratio) * (x0 - self._previous)
        self._previous = x0
        return first_order_step(x, midpoint, sigma, next_sigma)


class DPMSolverSinglestep(ExponentialScheduler):
    """DPM-Solver++(2S), algorithm 1: of two steps, one reaches the interior of an interval and one its end.

    The last step is of first order. As published, spacing is always linspace and there is no rescale to zero SNR.
    """

    history = ("_start",)
    spacing = "linspace"
    can_rescale = False

    def _reset(self) -> None:
        super()._reset()
        self._start: Optional[Sequence[Array]] = None  # x and x_0 at the start of the interval

    def _step(self, output: Array, index: int, x: Array, sample_noise: Callable[[], Array]) -> Array:
        sigma, next_sigma = self._sigma(index), self._sigma(index + 1)
        x0 = self.predicted_x0(output, x, *alpha_sigma(sigma))
        if index % 2 == 0 or self._is_last(index) or self._start is None:
            self._start = x, x0
            return first_order_step(x, x0, sigma, next_sigma)
        start, start_x0 = self._start
        start_sigma = self._sigma(index - 1)
        ratio = log(start_sigma / sigma) / log(start_sigma / next_sigma)
        return first_order_step(start, start_x0 + (0.5 / ratio) * (x0 - start_x0), start_sigma, next_sigma)


class DEISMultistep(ExponentialScheduler):
    """Second-order Adams-Bashforth on dy = ε dσ, y = x_t / α (section 3.4, ρAB), with ε linear in log σ.

    The first step is of first order, and with fewer than 15 steps the last one too. Trajectories end at the σ of
    timestep 0. As published, there is no rescale to zero SNR.
    """

    can_rescale = False
    timestep_range = (1, TRAIN_TIMESTEPS - 1)  # the trajectory ends at 0

    @property
    def final_sigma(self) -> float:
        return float(self._training_sigmas[0])

    def _step(self, output: Array, index: int, x: Array, sample_noise: Callable[[], Array]) -> Array:
        sigma, next_sigma = self._sigma(index), self._sigma(index + 1)
        alpha, scaled_sigma = alpha_sigma(sigma)
        noise = self.predicted_noise(output, x, alpha, scaled_sigma)
        if self._previous is None or self._is_last(index) and len(self.timesteps) < 15:
            integral = (next_sigma - sigma) * noise
        else:
            previous_sigma = self._sigma(index - 1)
            integral = (
                _integrate_basis(sigma, previous_sigma, sigma, next_sigma) * noise
                + _integrate_basis(previous_sigma, sigma, sigma, next_sigma) * self._previous
            )
        self._previous = noise
        return alpha_sigma(next_sigma)[0] * (x * (1 / alpha) + integral)


def _integrate_basis(node: float, other: float, start: float, end: float) -> float:
    """Integral over σ from start to end of the line in log σ that is 1 at node and 0 at other."""

    def antiderivative(sigma: float) -> float:
        return sigma * (log(sigma / other) - 1) / log(node / other)

    return antiderivative(end) - antiderivative(start)
