"""Generated videos, and their difference."""

from __future__ import annotations

import numpy as np

HEIGHT, WIDTH, FRAMES = 48, 64, 30


def moving_image(frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Smooth colors without symmetry that differ in every frame: uint8 (T, H, W, 3)."""
    t, y, x = np.ogrid[:frames, :height, :width]
    waves = np.broadcast_arrays(np.sin(x / 9 + t / 3), np.sin(y / 7 - t / 4 + 1), np.cos((x + 2 * y) / 11 + t / 5))
    return np.clip(128 + 90 * np.stack(waves, -1), 0, 255).astype(np.uint8)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference of the worst frame, in levels. Consecutive frames differ by about 20."""
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b).mean(axis=(1, 2, 3)).max())
