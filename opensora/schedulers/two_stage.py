"""Solvers that call the model twice per step: at σ, then where an Euler step to the next σ leads."""

from __future__ import annotations

from typing import Callable

import numpy as np

from opensora.schedulers.arrays import Array
from opensora.schedulers.sigma_space import ProbabilityFlowScheduler


class TwoStageScheduler(ProbabilityFlowScheduler):
    """Timesteps t0, t1, t1, t2, t2, ...: each but the first ends one step, then starts another.

    The step to σ = 0 has no second stage. As published, there is no rescale to zero SNR.
    """

    order = 2
    can_rescale = False

    def _run_timesteps(self, count: int) -> np.ndarray:
        return np.repeat(super()._run_timesteps(count), 2)[1:]

    def _sigma(self, index: int) -> float:
        return float(self.sigmas[(index + 1) // 2])

    def _step(self, output, index, x, draw):
        slope = self.slope(output, x, self._sigma(index))
        if index % 2 == 0:
            self._start = x, slope
            return x + (self._sigma(index + 1) - self._sigma(index)) * slope
        return self._second_stage(*self._start, slope, self._sigma(index - 1), self._sigma(index), draw)

    def _second_stage(
        self, start: Array, start_slope: Array, slope: Array, sigma: float, next_sigma: float, draw: Callable[[], Array]
    ) -> Array:
        """The state at next_sigma, from that at sigma and the slopes at both."""
        raise NotImplementedError
