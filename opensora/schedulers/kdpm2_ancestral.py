"""DPM-Solver-2 with ancestral noise.

Lu et al. 2022, "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling", algorithm 1 with r = 1/2, on
steps that end below the next σ (Song et al. 2021, "Score-Based Generative Modeling through SDEs", eq. 47).
"""

from __future__ import annotations

from opensora.schedulers.sigma_space import ancestral_split
from opensora.schedulers.two_stage import TwoStageScheduler


class KDPM2AncestralDiscrete(TwoStageScheduler):
    """Each step takes the slope at its middle in log σ.

    The flow is followed from σ down to σ'² / σ, σ' being the next ratio: the middle of these is σ' itself.
    """

    default_betas = ("linear", 0.00085, 0.012)

    def _step(self, output, index, x, draw):
        if index % 2 == 0:
            draw()  # the published sampler draws at both stages and uses the second draw
        return super()._step(output, index, x, draw)

    def _second_stage(self, start, start_slope, slope, sigma, next_sigma, draw):
        down, up = ancestral_split(sigma, next_sigma)
        return start + (down - sigma) * slope + up * draw()
