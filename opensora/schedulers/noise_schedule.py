"""How noise grows over the training timesteps, and which of them a run visits.

Notation of all samplers: x_t = sqrt(ᾱ_t) x_0 + sqrt(1 - ᾱ_t) ε (Ho et al. 2020, eq. 4), t = 0 ... 999.
"""

from __future__ import annotations

import numpy as np

TRAIN_TIMESTEPS = 1000
BETA_SCHEDULES = ("linear", "scaled_linear")
TIMESTEP_SPACINGS = ("linspace", "leading", "trailing")


def cumulative_alphas(
    schedule: str, beta_start: float, beta_end: float, snr_shift: float = 1.0, zero_snr: bool = False
) -> np.ndarray:
    """ᾱ_t of the training timesteps, (1000,) float64.

    `linear` betas are those of Ho et al. 2020 (section 4), `scaled_linear` those of Rombach et al. 2022 (linear in the
    square root). `snr_shift` divides the signal-to-noise ratio ᾱ / (1 - ᾱ); `zero_snr` makes the last one 0.
    """
    if schedule == "linear":
        betas = np.linspace(beta_start, beta_end, TRAIN_TIMESTEPS)
    else:
        betas = np.linspace(beta_start**0.5, beta_end**0.5, TRAIN_TIMESTEPS) ** 2
    alphas_cumprod = np.cumprod(1 - betas)
    alphas_cumprod = alphas_cumprod / (snr_shift + (1 - snr_shift) * alphas_cumprod)
    return _rescale_to_zero_snr(alphas_cumprod) if zero_snr else alphas_cumprod


def _rescale_to_zero_snr(alphas_cumprod: np.ndarray) -> np.ndarray:
    """Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", algorithm 1."""
    signal = np.sqrt(alphas_cumprod)
    return ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])) ** 2


def spaced_timesteps(spacing: str, count: int, skip_zero: bool = False) -> np.ndarray:
    """`count` of the training timesteps, falling (Lin et al. 2023, table 2); `linspace` gives fractions.

    With `skip_zero`, `linspace` and `leading` space one more and leave out the last, which is 0: solvers that step to
    an end of their own need no model call there.
    """
    if spacing == "trailing":
        # arange, as published: its floats decide ties of round(). It may give one too many.
        return np.arange(TRAIN_TIMESTEPS, 0, -TRAIN_TIMESTEPS / count)[:count].round() - 1
    spaced = count + skip_zero
    if spacing == "linspace":
        rising = np.linspace(0, TRAIN_TIMESTEPS - 1, spaced)
    else:
        rising = np.arange(spaced) * (TRAIN_TIMESTEPS // spaced)
    return rising[::-1][:count]
