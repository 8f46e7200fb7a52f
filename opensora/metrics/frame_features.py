"""Features of the frames of a video."""

from __future__ import annotations

from threading import RLock
from typing import Callable

import numpy as np
from mindspore import Tensor

BATCH = 16  # frames
NETWORK_LOCK = RLock()  # held while a network runs: MindSpore runs operators from one thread at a time


def frame_features(
    video: np.ndarray, network: Callable[[Tensor], Tensor], prepare: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Features (T, D) of the frames of a video (T, H, W, 3), uint8, a batch of frames at a time."""
    starts = range(0, len(video), BATCH)
    return np.concatenate([network(Tensor(prepare(video[i : i + BATCH]))).asnumpy() for i in starts])


def unit_length(features: np.ndarray) -> np.ndarray:
    """Features (..., D) divided by their norms."""
    return features / np.linalg.norm(features, axis=-1, keepdims=True)
