"""Structural similarity (Wang, Bovik, Sheikh and Simoncelli 2004, doi:10.1109/TIP.2003.819861)."""

from __future__ import annotations

import cv2
import numpy as np

from opensora.errors import UserError

TAPS, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2


def ssim(real: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """SSIM of each frame: (..., C, H, W) in [0, 1] -> (...) float64, the mean over channels and valid positions."""
    if real.shape != generated.shape:
        raise UserError(f"SSIM needs equal shapes, not {real.shape} and {generated.shape}")
    if min(real.shape[-2:]) < TAPS:
        raise UserError(f"SSIM needs frames of {TAPS}x{TAPS} at least, not {real.shape[-2]}x{real.shape[-1]}")
    planes = zip(real.reshape(-1, *real.shape[-2:]), generated.reshape(-1, *real.shape[-2:]))
    values = [_ssim_plane(a.astype(np.float64), b.astype(np.float64)) for a, b in planes]
    return np.reshape(values, real.shape[:-2]).mean(axis=-1)


def _ssim_plane(a: np.ndarray, b: np.ndarray) -> float:
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a = _blur(a * a) - mean_a**2
    variance_b = _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    contrast_structure = (2 * covariance + C2) / (variance_a + variance_b + C2)
    return float((luminance * contrast_structure).mean())


def _blur(plane: np.ndarray) -> np.ndarray:
    """(H, W) -> (H - 10, W - 10): Gaussian mean of each window that lies inside."""
    kernel = cv2.getGaussianKernel(TAPS, SIGMA)
    margin = TAPS // 2
    return cv2.sepFilter2D(plane, -1, kernel, kernel)[margin:-margin, margin:-margin]
