"""Normalization. Whatever the dtype of x, statistics and the arithmetic around them are float32, and the result is
rounded once to the dtype of x. Weights and modulations are float32.

Ascend has fused operators for some of them. They follow MindSpore's documentation and were not run on Ascend.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, ops

from opensora.ops.backend import uses_fused
from opensora.ops.cpu import norms as kernels
from opensora.ops.cpu.custom_op import available
from opensora.ops.precision import cast, float32_on_cpu


@float32_on_cpu
def channel_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, silu: bool = False) -> Tensor:
    """LayerNorm over the channels of x (..., C, H, W) at every position (Ba et al. 2016, eq. 4), then optionally SiLU.

    Reduces over the channel axis directly, without transposing to channels-last and back.
    """
    if available(x.dtype):
        return kernels.channel_layer_norm(x, weight, bias, eps, silu)
    dtype = x.dtype
    x = x.astype(ms.float32)
    centered = x - x.mean(-3, keep_dims=True)
    variance = (centered * centered).mean(-3, keep_dims=True)
    y = centered * ops.rsqrt(variance + eps) * weight.reshape(-1, 1, 1) + bias.reshape(-1, 1, 1)
    return (ops.silu(y) if silu else y).astype(dtype)


@float32_on_cpu
def group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, per_frame: bool = False, silu: bool = False
) -> Tensor:
    """GroupNorm (Wu & He 2018, eq. 7) of x (B, T, C, H, W), then optionally SiLU.

    Statistics are over a group's channels and all positions of the clip, or of each frame if `per_frame`.
    """
    if available(x.dtype):
        return kernels.group_norm(x, groups, weight, bias, eps, per_frame, silu)
    dtype, (b, t, c, h, w) = x.dtype, x.shape
    if per_frame and uses_fused("group_norm"):
        y = ops.group_norm(x.astype(ms.float32).reshape(b * t, c, h, w), groups, weight, bias, eps).reshape(x.shape)
        return (ops.silu(y) if silu else y).astype(dtype)
    x = x.astype(ms.float32).reshape(b, t, groups, -1)
    axes = (3,) if per_frame else (1, 3)
    centered = x - x.mean(axes, keep_dims=True)
    variance = (centered * centered).mean(axes, keep_dims=True)
    y = (centered * ops.rsqrt(variance + eps)).reshape(b, t, c, h, w)
    y = y * weight.reshape(-1, 1, 1) + bias.reshape(-1, 1, 1)
    return (ops.silu(y) if silu else y).astype(dtype)


@float32_on_cpu
def modulated_layer_norm(x: Tensor, modulation: Tensor, first: int, eps: float) -> Tensor:
    """LayerNorm without weights over the last axis, then `(1 + scale) y + shift` (adaLN, Peebles & Xie 2023).

    x is (B, S, D) or (B, T, S, D). modulation, float32, holds n vectors for each row, frame or clip of x, (B, n, D),
    (B, T, n, D) or (B, 1, n, D): the shift is vector number `first`, the scale the next one.
    """
    if available(x.dtype):
        return kernels.modulated_layer_norm(x, modulation, first, eps)
    dtype = x.dtype
    x = x.astype(ms.float32)
    if uses_fused("layer_norm"):
        y = ops.layer_norm(x, x.shape[-1:], eps=eps)
    else:
        centered = x - x.mean(-1, keep_dims=True)
        variance = (centered * centered).mean(-1, keep_dims=True)
        y = centered * ops.rsqrt(variance + eps)
    shift, scale = modulation[..., first : first + 1, :], modulation[..., first + 1 : first + 2, :]
    return (y * (1 + scale) + shift).astype(dtype)


@float32_on_cpu
def gated_residual(x: Tensor, modulation: Tensor, index: int, y: Tensor) -> Tensor:
    """x + gate y, the end of an adaLN branch. Shapes as in `modulated_layer_norm`; the gate is vector number `index`.

    y may have fewer bits than x.
    """
    y = cast(y, x.dtype)
    if available(x.dtype):
        return kernels.gated_residual(x, modulation, index, y)
    gate = modulation[..., index : index + 1, :]
    return (x.astype(ms.float32) + gate * y.astype(ms.float32)).astype(x.dtype)


@float32_on_cpu
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang & Sennrich 2019, eq. 4)."""
    if available(x.dtype):
        return kernels.rms_norm(x, weight, eps)
    dtype = x.dtype
    x = x.astype(ms.float32)
    if uses_fused("rms_norm"):
        y, _ = ops.rms_norm(x, weight, eps)
    else:
        y = x * ops.rsqrt((x * x).mean(-1, keep_dims=True) + eps) * weight
    return y.astype(dtype)
