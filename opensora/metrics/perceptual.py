"""LPIPS as published evaluations compute it: with AlexNet, averaged over the distance map."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, ops

from opensora.errors import UserError
from opensora.metrics.frame_features import NETWORK_LOCK
from opensora.models.lpips import LPIPS


def lpips(real: np.ndarray, generated: np.ndarray, network: LPIPS) -> np.ndarray:
    """LPIPS of each frame (Zhang et al. 2018, arXiv:1801.03924); lower means more similar.

    The maps of the five depths are upsampled to the frame size before they are summed, as the PyTorch package `lpips`
    does with `spatial=True`.

    Args:
        real: (T, 3, H, W) in [0, 1].
        generated: the same shape.
        network: published evaluations use `LPIPS.load(path, net="alex")`.

    Returns:
        (T,) float32.

    Raises:
        UserError: the shapes differ.
    """
    if real.shape != generated.shape:
        raise UserError(f"LPIPS needs equal shapes, not {real.shape} and {generated.shape}")
    with NETWORK_LOCK:
        maps = network.maps(*(Tensor(frames.astype(np.float32) * 2 - 1) for frames in (real, generated)))
        upsampled = [ops.interpolate(level, size=real.shape[-2:], mode="bilinear") for level in maps]
        return sum(upsampled).mean((1, 2, 3)).asnumpy()
