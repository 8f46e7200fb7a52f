"""Peak signal-to-noise ratio and structural similarity."""

from __future__ import annotations

import cv2
import numpy as np

from opensora.errors import UserError

PSNR_OF_EQUAL = 100.0  # dB, for equal frames: the true value is infinite and would dominate every mean
WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian window, in pixels
C1, C2 = 0.01**2, 0.03**2


def psnr(real: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """PSNR of each frame.

    Args:
        real: (..., C, H, W) in [0, 1].
        generated: the same shape.

    Returns:
        (...) float64, in dB; 100 for equal frames.

    Raises:
        UserError: the shapes differ.
    """
    if real.shape != generated.shape:
        raise UserError(f"PSNR needs equal shapes, not {real.shape} and {generated.shape}")
    error = np.square(real - generated, dtype=np.float64).mean(axis=(-3, -2, -1))
    return np.where(error < 1e-10, PSNR_OF_EQUAL, -10 * np.log10(np.maximum(error, 1e-10)))


def ssim(real: np.ndarray, generated: np.ndarray) -> np.ndarray:
    """SSIM of each frame (Wang, Bovik, Sheikh and Simoncelli 2004, doi:10.1109/TIP.2003.819861).

    Args:
        real: (..., C, H, W) in [0, 1].
        generated: the same shape.

    Returns:
        (...) float64, the mean over channels and over windows that lie inside the frame.

    Raises:
        UserError: the shapes differ, or the frames are smaller than the window.
    """
    if real.shape != generated.shape:
        raise UserError(f"SSIM needs equal shapes, not {real.shape} and {generated.shape}")
    if min(real.shape[-2:]) < WINDOW:
        raise UserError(f"SSIM needs frames of {WINDOW}x{WINDOW} at least, not {real.shape[-2]}x{real.shape[-1]}")
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
    """(H, W) -> (H - 10, W - 10): Gaussian mean of each window that lies inside the plane."""
    kernel = cv2.getGaussianKernel(WINDOW, SIGMA)
    margin = WINDOW // 2
    return cv2.sepFilter2D(plane, -1, kernel, kernel)[margin:-margin, margin:-margin]
