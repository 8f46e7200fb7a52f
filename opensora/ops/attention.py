"""Scaled dot-product attention, with an implementation per device.

The Ascend branch follows the documentation of FlashAttentionScore; it has not been run on Ascend.
"""

from __future__ import annotations

from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from opensora.ops.backend import uses_fused
from opensora.ops.cpu import attention as kernels
from opensora.ops.cpu.custom_op import gemm_available, zeros
from opensora.ops.precision import float32_on_cpu

# The stock implementation processes queries in blocks, so that a matrix of scores has at most this many elements.
SCORES_PER_BLOCK = 1 << 25
MASK_VALUE = -10000.0  # far below any score, so softmax gives 0; finite, so fully masked rows are not NaN

# Limits of FlashAttentionScore.
FLASH_BATCH, FLASH_LENGTH, FLASH_HEADS, FLASH_HEAD_DIM, FLASH_ALIGNMENT = 2000, 512 * 1024, 256, 512, 16


def mask_to_bias(mask: Tensor) -> Tensor:
    """Converts a mask of keys (B, L), 1 = attend, 0 = padding, to an additive bias (B, 1, 1, L), 0 or `MASK_VALUE`."""
    return ((1 - mask.astype(ms.float32)) * MASK_VALUE).expand_dims(1).expand_dims(1)


def prepare_attention_mask(mask: Tensor, queries: int, dtype) -> Tensor:
    """Converts a mask of keys (B, L), 1 = attend, 0 = padding, to what `attention` takes for tensors of `dtype`.

    Args:
        queries: S, their number.

    Returns:
        The bias of `mask_to_bias`; for FlashAttention, which needs an element for every pair of query and key, a mask
        (B, 1, S, L) uint8, 1 for masked keys. Make it once per forward pass, not in every layer.
    """
    if not _uses_flash(dtype):
        return mask_to_bias(mask)
    mask = mask.astype(ms.float32)
    # The documentation does not define the output of queries without any key, which might be NaN. Their outputs are
    # padding, so they may attend to all keys.
    masked = (1 - mask) * ops.ReduceMax(keep_dims=True)(mask, 1)
    return ops.tile(masked.astype(ms.uint8).reshape(-1, 1, 1, mask.shape[1]), (1, 1, queries, 1))


@float32_on_cpu
def attention(q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor] = None) -> Tensor:
    """softmax(q k^T / sqrt(D) + bias) v (Vaswani et al. 2017, eq. 1).

    q (B, S, N, D), k and v (B, L, N, D), mask of `prepare_attention_mask` or None -> (B, S, N, D). No gradient
    flows to the mask.
    """
    scale = q.shape[-1] ** -0.5
    if gemm_available(q.dtype):
        return kernels.attention(q, k, v, _no_bias() if mask is None else mask, scale)
    if _uses_flash(q.dtype) and _flash_supports(q.shape, k.shape[1]):
        return _flash_attention(q, k, v, mask, scale)
    bias = mask
    if mask is not None and mask.dtype == ms.uint8:
        bias = mask.astype(ms.float32) * MASK_VALUE
    q, k, v = q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2)  # B N S D
    rows = _rows_per_block(q.shape[0] * q.shape[1] * k.shape[2])
    if q.shape[2] <= rows:
        return _attend(q, k, v, bias, scale).swapaxes(1, 2)
    blocks = []
    for start in range(0, q.shape[2], rows):
        stop = min(start + rows, q.shape[2])
        block_bias = bias if bias is None or bias.shape[2] == 1 else bias[:, :, start:stop]
        blocks.append(_attend(q[:, :, start:stop], k, v, block_bias, scale))
    return ops.cat(blocks, 2).swapaxes(1, 2)


@float32_on_cpu
def self_attention(qkv: Tensor, mask: Optional[Tensor] = None) -> Tensor:
    """`attention` of the queries, keys and values in qkv (3 B, S, N, D), one after another -> (B, S, N, D)."""
    if gemm_available(qkv.dtype):
        return kernels.self_attention(qkv, _no_bias() if mask is None else mask, qkv.shape[-1] ** -0.5)
    q, k, v = ops.chunk(qkv, 3, 0)
    return attention(q, k, v, mask)


@float32_on_cpu
def unscaled_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T + bias) v, the attention of T5.

    q (B, S, N, D), k and v (B, L, N, D), bias (B, N, S, L) -> (B, S, N, D). No gradient flows to the bias.
    """
    if gemm_available(q.dtype):
        return kernels.attention(q, k, v, bias, 1.0)
    return _attend(q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2), ops.stop_gradient(bias), 1.0).swapaxes(1, 2)


@float32_on_cpu
def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`attention` of queries to the keys at the same and earlier positions alone; q, k, v (B, S, N, D)."""
    scale, bias = q.shape[-1] ** -0.5, _causal_bias(q.shape[1])
    if gemm_available(q.dtype):
        return kernels.attention(q, k, v, bias, scale)
    return _attend(q.swapaxes(1, 2), k.swapaxes(1, 2), v.swapaxes(1, 2), bias, scale).swapaxes(1, 2)


@ops.constexpr
def _causal_bias(length: int) -> Tensor:
    """The bias (1, 1, S, S) float32 that hides later keys."""
    return Tensor(np.triu(np.full((1, 1, length, length), MASK_VALUE, np.float32), 1))


@ops.constexpr
def _no_bias() -> Tensor:
    return zeros(1, 1, 1, 1)


@ops.constexpr
def _rows_per_block(scores_per_row: int) -> int:
    """Constant in graph mode, which cannot differentiate a branch on a computed number."""
    return max(1, SCORES_PER_BLOCK // scores_per_row)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor], scale: float) -> Tensor:
    scores = ops.BatchMatMul(transpose_b=True)(q if scale == 1 else q * scale, k).astype(ms.float32)
    if bias is not None:
        scores = scores + bias
    return ops.BatchMatMul()(ops.softmax(scores, -1).astype(v.dtype), v)


@ops.constexpr
def _uses_flash(dtype) -> bool:
    """Whether tensors of `dtype` go to FlashAttentionScore, which computes 16-bit types only."""
    return uses_fused("flash_attention") and dtype in (ms.float16, ms.bfloat16)


@ops.constexpr
def _flash_supports(shape: tuple, keys: int) -> bool:
    """Whether queries of `shape` (B, S, N, D) are within the limits that `_flash_attention` does not work around."""
    _, queries, heads, head_dim = shape
    return max(queries, keys) <= FLASH_LENGTH and heads <= FLASH_HEADS and head_dim <= FLASH_HEAD_DIM


def _flash_attention(q: Tensor, k: Tensor, v: Tensor, mask: Optional[Tensor], scale: float) -> Tensor:
    """FlashAttentionScore on at most `FLASH_BATCH` rows at a time, with heads padded to a multiple of 16 channels."""
    head_dim = q.shape[3]
    padding = -head_dim % FLASH_ALIGNMENT
    if padding:  # zeros change neither the scores nor, after slicing, the output
        q, k, v = ops.pad(q, (0, padding)), ops.pad(k, (0, padding)), ops.pad(v, (0, padding))
    outputs = []
    for start in range(0, q.shape[0], FLASH_BATCH):
        stop = min(start + FLASH_BATCH, q.shape[0])
        outputs.append(
            ops.flash_attention_score(
                q[start:stop].contiguous(),
                k[start:stop].contiguous(),
                v[start:stop].contiguous(),
                q.shape[2],
                attn_mask=None if mask is None else mask[start:stop].contiguous(),
                scalar_value=scale,
                input_layout="BSND",
            )
        )
    y = outputs[0] if len(outputs) == 1 else ops.cat(outputs, 0)
    return y[..., :head_dim] if padding else y
