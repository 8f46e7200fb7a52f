"""CogVideoX: Yang et al. 2024, "CogVideoX: Text-to-Video Diffusion Models with An Expert Transformer"."""

from __future__ import annotations

from opensora.schedulers.ddim import DDIM


class CogVideoX(DDIM):
    """DDIM over betas of its own, with a third of their signal-to-noise ratio (Esser et al. 2024, section 5.3.2)."""

    default_betas = ("scaled_linear", 0.00085, 0.012)
    snr_shift = 3.0
