"""Normalisation. Statistics are float32 whatever the input."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, ops

from opensora.ops.cpu import kernels


def channel_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, silu: bool = False) -> Tensor:
    """LayerNorm over the channels of x (..., C, H, W), each position by itself (Ba et al. 2016, eq. 4), SiLU after it.

    Reductions over that axis instead of LayerNorm between two transposes: the tensor is never rearranged.
    """
    if kernels.available(x.dtype):
        return kernels.channel_layer_norm(x, weight, bias, eps, silu)
    dtype = x.dtype
    x = x.astype(ms.float32)
    centred = x - x.mean(-3, keep_dims=True)
    variance = (centred * centred).mean(-3, keep_dims=True)
    y = centred * ops.rsqrt(variance + eps) * weight.reshape(-1, 1, 1) + bias.reshape(-1, 1, 1)
    return (ops.silu(y) if silu else y).astype(dtype)


def group_norm(
    x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, per_frame: bool = False, silu: bool = False
) -> Tensor:
    """GroupNorm (Wu & He 2018, eq. 7) of x (B, T, C, H, W), SiLU after it.

    Statistics are over a group's channels and all positions, or over those of each frame by itself if `per_frame`.
    """
    if kernels.available(x.dtype):
        return kernels.group_norm(x, groups, weight, bias, eps, per_frame, silu)
    dtype, (b, t, c, h, w) = x.dtype, x.shape
    x = x.astype(ms.float32).reshape(b, t, groups, -1)
    axes = (3,) if per_frame else (1, 3)
    centred = x - x.mean(axes, keep_dims=True)
    variance = (centred * centred).mean(axes, keep_dims=True)
    y = (centred * ops.rsqrt(variance + eps)).reshape(b, t, c, h, w)
    y = y * weight.reshape(-1, 1, 1) + bias.reshape(-1, 1, 1)
    return (ops.silu(y) if silu else y).astype(dtype)


def modulated_layer_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    """LayerNorm without weights over the last axis, then `(1 + scale) y + shift` (adaLN, Peebles & Xie 2023).

    x (B, S, D) or (B, T, S, D); shift and scale have x's shape, but 1 on some axes before the last: (B, 1, D),
    (B, T, 1, D) or (B, 1, 1, D).
    """
    if kernels.available(x.dtype):
        shift, scale = _one_row(shift), _one_row(scale)
        return kernels.modulated_layer_norm(_rows_of(x, shift), shift, scale, eps).reshape(x.shape)
    dtype = x.dtype
    x = x.astype(ms.float32)
    centred = x - x.mean(-1, keep_dims=True)
    variance = (centred * centred).mean(-1, keep_dims=True)
    return (centred * ops.rsqrt(variance + eps) * (1 + scale) + shift).astype(dtype)


def gated_residual(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """x + gate y, the other end of a modulated branch: x and y (B, S, D), gate (B, 1, D), or as in the norm above."""
    if kernels.available(x.dtype):
        gate = _one_row(gate)
        return kernels.gated_residual(_rows_of(x, gate), gate, _rows_of(y, gate)).reshape(x.shape)
    return x + gate * y


def _one_row(modulation: Tensor) -> Tensor:
    """(..., 1, D) -> (groups, 1, D)."""
    return modulation.reshape(-1, 1, modulation.shape[-1])


def _rows_of(x: Tensor, modulation: Tensor) -> Tensor:
    """x (..., D) -> (groups, rows, D), the rows that share a modulation together."""
    return x.reshape(modulation.shape[0], -1, x.shape[-1])


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (Zhang & Sennrich 2019, eq. 4)."""
    if kernels.available(x.dtype):
        return kernels.rms_norm(x, weight, eps)
    dtype = x.dtype
    x = x.astype(ms.float32)
    return (x * ops.rsqrt((x * x).mean(-1, keep_dims=True) + eps) * weight).astype(dtype)
