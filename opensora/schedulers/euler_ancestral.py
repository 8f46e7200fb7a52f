"""Euler's method with ancestral noise: Song et al. 2021, "Score-Based Generative Modeling through SDEs", eq. 47."""

from __future__ import annotations

from opensora.schedulers.sigma_space import ProbabilityFlowScheduler, ancestral_split


class EulerAncestralDiscrete(ProbabilityFlowScheduler):
    """Each step goes below the next σ along the flow, then adds noise up to it; the sampler of the v1.3 release."""

    def _step(self, output, index, x, draw):
        sigma, next_sigma = self._sigma(index), self._sigma(index + 1)
        down, up = ancestral_split(sigma, next_sigma)
        return x + (down - sigma) * self.slope(output, x, sigma) + up * draw()
