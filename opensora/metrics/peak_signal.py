"""Peak signal-to-noise ratio."""

from __future__ import annotations

import numpy as np

from opensora.errors import UserError

EQUAL = 100.0  # dB, for pictures without a difference: the true value is infinite and would drown every mean


def psnr(real: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """PSNR in dB of each frame: (..., C, H, W) in [0, 1] -> (...) float64; 100 where the frames are equal."""
    if real.shape != generated.shape:
        raise UserError(f"PSNR needs equal shapes, not {real.shape} and {generated.shape}")
    error = np.square(real - generated, dtype=np.float64).mean(axis=(-3, -2, -1))
    return np.where(error < 1e-10, EQUAL, -10 * np.log10(np.maximum(error, 1e-10)))
