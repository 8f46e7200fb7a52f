"""Scaled dot-product attention, with an implementation per device.

The Ascend branch follows the documentation of FlashAttentionScore; it has not been run on Ascend.
"""

from __future__ import annotations

from typing import Optional

import mindspore as ms
from mindspore import Tensor, ops

from opensora.ops.backend import on_ascend
from opensora.ops.cpu import attention as kernels
from opensora.ops.cpu.custom_op import gemm_available

# The stock implementation processes queries in blocks, so that a matrix of scores has at most this many elements.
SCORES_PER_BLOCK = 1 << 25
MASK_VALUE = -10000.0  # far below any score, so softmax gives 0; finite, so fully masked rows are not NaN


def mask_to_bias(mask: Tensor) -> Tensor:
    """Converts a mask of keys (B, L), 1 = attend, 0 = padding, to an additive bias (B, 1, 1, L), 0 or `MASK_VALUE`."""
    return ((1 - mask.astype(ms.float32)) * MASK_VALUE).expand_dims(1).expand_dims(1)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v (Vaswani et al. 2017, eq. 1).

    q (B, S, N, D), k and v (B, L, N, D), bias (B, 1, 1, L) or None -> (B, S, N, D). No gradient flows to the bias.
    """
    scale = q.shape[-1] ** -0.5
    if gemm_available(q.dtype):
        return kernels.attention(q, k, v, _no_bias() if bias is None else bias, scale)
    if on_ascend() and _flash_supports(q):
        return _flash_attention(q, k, v, bias, scale)
    q, k, v = q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2)  # B N S D
    rows = _rows_per_block(q.shape[0] * q.shape[1] * k.shape[2])
    if q.shape[2] <= rows:
        return _attend(q, k, v, bias, scale).swapaxes(1, 2)
    return ops.cat([_attend(block, k, v, bias, scale) for block in ops.split(q, rows, 2)], 2).swapaxes(1, 2)


def unscaled_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T + bias) v, the attention of T5.

    q (B, S, N, D), k and v (B, L, N, D), bias (B, N, S, L) -> (B, S, N, D). No gradient flows to the bias.
    """
    if gemm_available(q.dtype):
        return kernels.attention(q, k, v, bias, 1.0)
    return _attend(q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2), ops.stop_gradient(bias), 1.0).swapaxes(1, 2)


@ops.constexpr
def _no_bias() -> Tensor:
    return ms.ops.zeros((1, 1, 1, 1), ms.float32)


@ops.constexpr
def _rows_per_block(scores_per_row: int) -> int:
    """Constant in graph mode, which cannot differentiate a branch on a computed number."""
    return max(1, SCORES_PER_BLOCK // scores_per_row)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor], scale: float) -> Tensor:
    scores = ops.BatchMatMul(transpose_b=True)(q if scale == 1 else q * scale, k)
    if bias is not None:
        scores = scores.astype(ms.float32) + bias
    return ops.matmul(ops.softmax(scores.astype(ms.float32), -1).astype(v.dtype), v)


def _flash_supports(q: Tensor) -> bool:
    """FlashAttentionScore supports 16-bit types and head dimensions that are multiples of 16, at most 512."""
    return q.dtype in (ms.float16, ms.bfloat16) and q.shape[-1] % 16 == 0 and q.shape[-1] <= 512


def _flash_attention(q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor], scale: float) -> Tensor:
    """FlashAttentionScore, whose mask (B, 1, S, L) is 1 for masked keys."""
    attn_mask = None
    if bias is not None:
        attn_mask = (bias < 0).astype(ms.uint8).broadcast_to((q.shape[0], 1, q.shape[1], k.shape[1]))
    return ops.flash_attention_score(q, k, v, q.shape[2], attn_mask=attn_mask, scalar_value=scale, input_layout="BSND")
