"""Rotary position embedding in three dimensions (Su et al. 2021, eq. 34, once for each of time, height, width)."""
from __future__ import annotations

from functools import lru_cache

import numpy as np
from mindspore import Tensor, ops

from opensora.ops.cpu import kernels

BASE = 10000.0


@lru_cache(maxsize=8)
def _angles(frames: int, height: int, width: int, head_dim: int, scales: tuple) -> np.ndarray:
    """Angles (T H W, 1, 3, head_dim / 6) for positions in row-major order, axes (t, h, w).

    An axis as long as an earlier one takes that one's scale: an oddity of the published model, which keeps its
    tables by length. It shows only where scales differ.
    """
    if head_dim % 6:
        raise ValueError(f"attention_head_dim {head_dim} is not a multiple of 6, which 3-D rope needs")
    dim = head_dim // 3
    lengths = (frames, height, width)
    scales = [scales[lengths.index(length)] for length in lengths]
    inverse_frequencies = 1.0 / BASE ** (np.arange(0, dim, 2) / dim)
    positions = np.stack(np.meshgrid(*(np.arange(n) / scale for n, scale in zip(lengths, scales)),
                                     indexing="ij"), -1)  # T H W 3
    return (positions.reshape(-1, 1, 3, 1) * inverse_frequencies).astype(np.float32)


@ops.constexpr
def rope_cos(frames: int, height: int, width: int, head_dim: int, scales: tuple) -> Tensor:
    """cos of the angles, (T H W, 1, 3, head_dim / 6); a constant in graph mode. `scales` divide (t, h, w)."""
    return Tensor(np.cos(_angles(frames, height, width, head_dim, scales)))


@ops.constexpr
def rope_sin(frames: int, height: int, width: int, head_dim: int, scales: tuple) -> Tensor:
    """sin of the angles, laid out like `rope_cos`."""
    return Tensor(np.sin(_angles(frames, height, width, head_dim, scales)))


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x (B, S, N, head_dim). A head is three parts, for t, h and w; halves of a part form the pairs."""
    if kernels.available(x.dtype):
        return kernels.apply_rope(x, cos, sin)
    b, s, n, d = x.shape
    pairs = x.astype(cos.dtype).reshape(b, s, n, 3, 2, d // 6)
    first, second = pairs[..., 0, :], pairs[..., 1, :]
    rotated = ops.stack((first * cos - second * sin, second * cos + first * sin), -2)
    return rotated.reshape(b, s, n, d).astype(x.dtype)
