"""DEIS: Zhang & Chen 2023, "Fast Sampling of Diffusion Models with Exponential Integrator"."""

from __future__ import annotations

from math import log

from opensora.schedulers.exponential import ExponentialScheduler
from opensora.schedulers.sigma_space import variance_preserving


class DEISMultistep(ExponentialScheduler):
    """Adams-Bashforth of second order on dy = ε dσ (section 3.4, ρAB), with ε linear in log σ.

    The first step is of first order, and with fewer than 15 steps the last. Runs end at the σ of timestep 0. As
    published, there is no rescale to zero SNR.
    """

    can_rescale = False

    @property
    def final_sigma(self) -> float:
        return float(self._training_sigmas[0])

    def _step(self, output, index, x, draw):
        sigma, next_sigma = self._sigma(index), self._sigma(index + 1)
        alpha, scaled_sigma = variance_preserving(sigma)
        noise = self.predicted_noise(output, x, alpha, scaled_sigma)
        if self._previous is None or self._is_last(index) and len(self.timesteps) < 15:
            change = (next_sigma - sigma) * noise
        else:
            previous_sigma = self._sigma(index - 1)
            change = (
                _weight(sigma, previous_sigma, sigma, next_sigma) * noise
                + _weight(previous_sigma, sigma, sigma, next_sigma) * self._previous
            )
        self._previous = noise
        return variance_preserving(next_sigma)[0] * (x * (1 / alpha) + change)


def _weight(node: float, other: float, start: float, end: float) -> float:
    """Integral over σ from start to end of the line in log σ that is 1 at node and 0 at other."""

    def antiderivative(sigma: float) -> float:
        return sigma * (log(sigma / other) - 1) / log(node / other)

    return antiderivative(end) - antiderivative(start)
