"""DPM-Solver++(2S).

Lu et al. 2022, "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models".
"""

from __future__ import annotations

from math import log

from opensora.schedulers.exponential import ExponentialScheduler, step_by_data
from opensora.schedulers.sigma_space import variance_preserving


class DPMSolverSinglestep(ExponentialScheduler):
    """Algorithm 1: of two steps, one finds the middle of an interval and one goes from its start to its end.

    The last step is of first order. As published, spacing is always linspace and there is no rescale to zero SNR.
    """

    spacing = "linspace"
    can_rescale = False

    def _step(self, output, index, x, draw):
        sigma, next_sigma = self._sigma(index), self._sigma(index + 1)
        x0 = self.predicted_x0(output, x, *variance_preserving(sigma))
        if index % 2 == 0 or self._is_last(index) or self._previous is None:
            self._previous = x, x0
            return step_by_data(x, x0, sigma, next_sigma)
        start, start_x0 = self._previous
        start_sigma = self._sigma(index - 1)
        ratio = log(start_sigma / sigma) / log(start_sigma / next_sigma)
        return step_by_data(start, start_x0 + (0.5 / ratio) * (x0 - start_x0), start_sigma, next_sigma)
