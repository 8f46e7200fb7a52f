"""Euler's method on the probability flow: Karras et al. 2022, algorithm 1 without its correction."""

from __future__ import annotations

from opensora.schedulers.sigma_space import ProbabilityFlowScheduler


class EulerDiscrete(ProbabilityFlowScheduler):
    """dy = ε dσ, step by step, to σ = 0."""

    def _step(self, output, index, x, draw):
        draw()  # the published sampler draws noise it has no use for; the draws after it stay in step with it so
        sigma, next_sigma = self._sigma(index), self._sigma(index + 1)
        return x + (next_sigma - sigma) * self.slope(output, x, sigma)
