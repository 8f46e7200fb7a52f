"""DPM-Solver++(2M).

Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models".
"""

from __future__ import annotations

from math import log

from opensora.schedulers.exponential import ExponentialScheduler, step_by_data
from opensora.schedulers.sigma_space import variance_preserving


class DPMSolverMultistep(ExponentialScheduler):
    """Algorithm 2: x_0 goes on changing with log σ as it did; the first and the last step are of first order."""

    def _step(self, output, index, x, draw):
        sigma, next_sigma = self._sigma(index), self._sigma(index + 1)
        x0 = self.predicted_x0(output, x, *variance_preserving(sigma))
        middle = x0
        if self._previous is not None and not self._is_last(index):
            ratio = log(self._sigma(index - 1) / sigma) / log(sigma / next_sigma)
            middle = x0 + (0.5 / ratio) * (x0 - self._previous)
        self._previous = x0
        return step_by_data(x, middle, sigma, next_sigma)
