"""LPIPS as published evaluations compute it: with AlexNet, the mean of the map of distances."""

from __future__ import annotations

from pathlib import Path
from threading import Lock
from typing import Union

import numpy as np
from mindspore import Tensor, ops

from opensora.errors import UserError
from opensora.models.lpips import LPIPS


class SpatialLPIPS:
    """LPIPS of each frame: (T, 3, H, W) twice, in [0, 1] -> (T,); the lower, the more alike.

    The maps of the five depths are enlarged to the frame's size before they are added up, as the PyTorch package
    `lpips` does it with `spatial=True`. `path` is that of the weights.
    """

    def __init__(self, path: Union[str, Path]):
        self.network = LPIPS.load(path, net="alex").set_train(False)
        self.lock = Lock()  # folders are compared by several threads

    def __call__(self, real: np.ndarray, generated: np.ndarray) -> np.ndarray:
        if real.shape != generated.shape:
            raise UserError(f"LPIPS needs equal shapes, not {real.shape} and {generated.shape}")
        with self.lock:
            maps = self.network.maps(*(Tensor(frames.astype(np.float32) * 2 - 1) for frames in (real, generated)))
            enlarged = [ops.interpolate(level, size=real.shape[-2:], mode="bilinear") for level in maps]
            return sum(enlarged).mean((1, 2, 3)).asnumpy()
