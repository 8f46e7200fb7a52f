"""Rotary position embedding (Su et al. 2021, eq. 34).

In three dimensions, halves of a head's parts forming the pairs; in one, neighbouring channels forming them
("interleaved"): so the published models that use them have it.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from mindspore import Tensor, ops

from opensora.errors import UserError
from opensora.ops.cpu import kernels

BASE = 10000.0


def inverse_frequencies(dim: int) -> np.ndarray:
    """Angles per position of a head's dim / 2 pairs."""
    return 1.0 / BASE ** (np.arange(0, dim, 2) / dim)


@lru_cache(maxsize=8)
def _angles(frames: int, height: int, width: int, head_dim: int, scales: tuple) -> np.ndarray:
    """Angles (T H W, 1, 3, head_dim / 6) for positions in row-major order, axes (t, h, w).

    An axis as long as an earlier one takes that one's scale: an oddity of the published model, which keeps its
    tables by length. It shows only where scales differ.
    """
    if head_dim % 6:
        raise UserError(f"attention_head_dim {head_dim} is not a multiple of 6, which 3-D rope needs")
    dim = head_dim // 3
    lengths = (frames, height, width)
    scales = [scales[lengths.index(length)] for length in lengths]
    positions = np.stack(
        np.meshgrid(*(np.arange(n) / scale for n, scale in zip(lengths, scales)), indexing="ij"), -1
    )  # T H W 3
    return (positions.reshape(-1, 1, 3, 1) * inverse_frequencies(dim)).astype(np.float32)


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


@ops.constexpr
def interleaved_cos(length: int, head_dim: int) -> Tensor:
    """cos of the angles of positions 0 ... S - 1, (S, 1, head_dim); a constant in graph mode."""
    return Tensor(np.cos(_interleaved_angles(length, head_dim)))


@ops.constexpr
def interleaved_sin(length: int, head_dim: int) -> Tensor:
    """sin of the angles, laid out like `interleaved_cos`."""
    return Tensor(np.sin(_interleaved_angles(length, head_dim)))


def _interleaved_angles(length: int, head_dim: int) -> np.ndarray:
    angles = np.outer(np.arange(length), inverse_frequencies(head_dim).repeat(2))
    return angles.astype(np.float32)[:, None]


@ops.constexpr
def _quarter_turn(head_dim: int) -> Tensor:
    """x times this matrix is x with every pair (a, b) turned to (-b, a)."""
    return Tensor(np.kron(np.eye(head_dim // 2), [[0, 1], [-1, 0]]).astype(np.float32))


def apply_interleaved_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x (B, S, N, head_dim), neighbouring channels forming the pairs.

    A product with a matrix turns them, which is several times faster than taking pairs apart and joining them.
    """
    y = x.astype(cos.dtype)
    turned = ops.matmul(y.reshape(-1, y.shape[-1]), _quarter_turn(y.shape[-1])).reshape(y.shape)
    return (y * cos + turned * sin).astype(x.dtype)
