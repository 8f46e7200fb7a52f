"""Heun's method on the probability flow: Karras et al. 2022, algorithm 1 (deterministic)."""

from __future__ import annotations

from opensora.schedulers.two_stage import TwoStageScheduler


class HeunDiscrete(TwoStageScheduler):
    """Each step takes the mean of the slopes at its two ends; second order."""

    default_betas = ("linear", 0.00085, 0.012)

    def _second_stage(self, start, start_slope, slope, sigma, next_sigma, draw):
        return start + ((next_sigma - sigma) / 2) * (start_slope + slope)
