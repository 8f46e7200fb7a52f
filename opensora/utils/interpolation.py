"""Interpolation along one axis without antialiasing, as `torch.nn.functional.interpolate(align_corners=False)`."""

from __future__ import annotations

from typing import Optional

import numpy as np


def linear_weights(size: int, count: int, step: Optional[float] = None) -> np.ndarray:
    """The matrix (count, size) of linear interpolation from `size` to `count` samples; see `bicubic_weights`."""
    return _weights(size, count, step, lambda distance: np.maximum(0, 1 - distance), 1)


def bicubic_weights(size: int, count: int, step: Optional[float] = None, a: float = -0.75) -> np.ndarray:
    """The matrix (count, size) of cubic convolution from `size` to `count` samples (Keys 1981, eq. 15).

    Args:
        step: samples of the input between those of the output; None: size / count.
        a: the filter's parameter.

    Returns:
        float32; rows sum to 1, and samples beyond the ends are those at the ends.
    """

    def kernel(distance: np.ndarray) -> np.ndarray:
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
        return np.where(distance <= 1, near, np.where(distance < 2, far, 0))

    return _weights(size, count, step, kernel, 2)


def _weights(size: int, count: int, step: Optional[float], kernel, reach: int) -> np.ndarray:
    step = size / count if step is None else step
    centers = (np.arange(count) + 0.5) * step - 0.5
    if reach == 1:
        centers = np.maximum(centers, 0)
    first = np.floor(centers).astype(int) - reach + 1
    weights = np.zeros((count, size))
    rows = np.arange(count)
    for tap in range(2 * reach):
        at = first + tap
        np.add.at(weights, (rows, np.clip(at, 0, size - 1)), kernel(np.abs(centers - at)))
    return weights.astype(np.float32)


def interpolate(pixels: np.ndarray, along_rows: np.ndarray, along_columns: np.ndarray) -> np.ndarray:
    """Pixels (..., H, W) resampled by a matrix (H', H) and a matrix (W', W): (..., H', W') float32."""
    return along_rows @ pixels.astype(np.float32, copy=False) @ along_columns.T
