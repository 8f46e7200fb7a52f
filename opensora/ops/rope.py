"""Rotary position embedding (Su et al. 2021, eq. 34).

The 3-D form pairs channel i of an axis' section of the head with channel i + D / 6, as in Open-Sora-Plan. The 1-D
"interleaved" form pairs neighboring channels, as in Open-Sora.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Optional

import numpy as np
from mindspore import Tensor, ops

from opensora.errors import UserError
from opensora.ops.backend import uses_fused
from opensora.ops.cpu import elementwise as kernels
from opensora.ops.cpu.custom_op import available
from opensora.ops.layout import concat
from opensora.ops.precision import float32_on_cpu

BASE = 10000.0
# Limits of RotaryPositionEmbedding, whose batch and heads must each be smaller than 1000, and its mode for pairs of
# neighboring channels.
ROTARY_BATCH = ROTARY_HEADS = 999
ROTARY_HEAD_DIM = 894
ROTARY_INTERLEAVED = 1


def inverse_frequencies(dim: int) -> np.ndarray:
    """Angle per position for each of the dim / 2 pairs."""
    return 1.0 / BASE ** (np.arange(0, dim, 2) / dim)


@lru_cache(maxsize=8)
def _angles(frames: int, height: int, width: int, head_dim: int, scales: tuple) -> np.ndarray:
    """Angles (T H W, 1, 3, head_dim / 6) for positions in row-major order, axes (t, h, w).

    An axis that is as long as an earlier one gets that axis' scale. The released models cache their tables by length
    and so have this bug; it has an effect only if the scales differ.
    """
    if head_dim % 6:
        raise UserError(f"attention_head_dim {head_dim} is not a multiple of 6, which 3-D rope needs")
    dim = head_dim // 3
    lengths = (frames, height, width)
    scales = tuple(scales[lengths.index(length)] for length in lengths)
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


@float32_on_cpu
def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, rows: Optional[int] = None) -> Tensor:
    """Rotates x (B, S, N, head_dim): a head has sections for t, h and w, and the halves of a section form the pairs.

    With `rows` smaller than B, only the first rows of the batch are rotated.
    """
    b, s, n, d = x.shape
    rows = b if rows is None else rows
    if available(x.dtype):
        return kernels.apply_rope(x, cos, sin, rows)
    if rows < b:
        return concat(apply_rope(x[:rows], cos, sin), x[rows:], 0)
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
def _rotate_pairs(head_dim: int) -> Tensor:
    """The matrix that maps every pair (a, b) of x to (-b, a)."""
    return Tensor(np.kron(np.eye(head_dim // 2), [[0, 1], [-1, 0]]).astype(np.float32))


@float32_on_cpu
def apply_interleaved_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x (B, S, N, head_dim); neighboring channels form the pairs.

    A matrix product exchanges the channels of each pair, several times faster than slicing and stacking. Ascend has a
    fused operator.
    """
    y = x.astype(cos.dtype)
    if uses_fused("rope") and _rotary_supports(x.shape):
        cos, sin = cos.expand_dims(0), sin.expand_dims(0)  # 1 S 1 D
        blocks = [
            ops.rotary_position_embedding(y[start : start + ROTARY_BATCH].contiguous(), cos, sin, ROTARY_INTERLEAVED)
            for start in range(0, y.shape[0], ROTARY_BATCH)
        ]
        return (blocks[0] if len(blocks) == 1 else ops.cat(blocks, 0)).astype(x.dtype)
    rotated = ops.matmul(y.reshape(-1, y.shape[-1]), _rotate_pairs(y.shape[-1])).reshape(y.shape)
    return (y * cos + rotated * sin).astype(x.dtype)


@ops.constexpr
def _rotary_supports(shape: tuple) -> bool:
    """Whether (B, S, N, head_dim) is within the limits of RotaryPositionEmbedding, apart from the batch."""
    return shape[2] <= ROTARY_HEADS and shape[3] <= ROTARY_HEAD_DIM and shape[3] % 2 == 0
