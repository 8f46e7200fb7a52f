"""Kernels of `opensora.ops.norms`: layer_norm.cc, channel_layer_norm.cc, group_norm.cc, elementwise.cc."""

from __future__ import annotations

from functools import cache

from mindspore import Tensor, ops

from opensora.ops.cpu.custom_op import custom_op, settings


@cache
def _modulated_layer_norm():
    grad = custom_op("modulated_layer_norm_grad", 0, 1)

    def bprop(x, modulation, values, out, dout):
        dx, dmodulation = grad(x, modulation, values, dout)
        return dx, dmodulation, ops.zeros_like(values)

    return custom_op("modulated_layer_norm", 0, bprop=bprop)


def modulated_layer_norm(x: Tensor, modulation: Tensor, first: int, eps: float) -> Tensor:
    """x (..., D), modulation (..., vectors, D): shift and scale are the vectors `first`, `first` + 1 -> (..., D)."""
    return _modulated_layer_norm()(x, modulation, settings(eps, first))


@cache
def _gated_residual():
    grad = custom_op("gated_residual_grad", 0, 2)

    def bprop(x, modulation, first, y, out, dout):
        dmodulation, dy = grad(modulation, first, y, dout)
        return dout, dmodulation, ops.zeros_like(first), dy

    return custom_op("gated_residual", 0, bprop=bprop)


def gated_residual(x: Tensor, modulation: Tensor, index: int, y: Tensor) -> Tensor:
    """x and y (..., D), modulation (..., vectors, D), of which the gate is the vector `index` -> (..., D)."""
    return _gated_residual()(x, modulation, settings(index), y)


@cache
def _rms_norm():
    grad = custom_op("rms_norm_grad", 0, 1)

    def bprop(x, weight, eps, out, dout):
        dx, dweight = grad(x, weight, eps, dout)
        return dx, dweight, ops.zeros_like(eps)

    return custom_op("rms_norm", 0, bprop=bprop)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., D), weight (D,) -> (..., D)."""
    return _rms_norm()(x, weight, settings(eps))


@cache
def _affine_norm(name: str):
    """A norm with the inputs x, weight, bias, settings."""
    grad = custom_op(f"{name}_grad", 0, 1, 2)

    def bprop(x, weight, bias, values, out, dout):
        dx, dweight, dbias = grad(x, weight, bias, values, dout)
        return dx, dweight, dbias, ops.zeros_like(values)

    return custom_op(name, 0, bprop=bprop)


def channel_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, silu: bool) -> Tensor:
    """x (..., C, H, W), weight and bias (C,) -> (..., C, H, W)."""
    return _affine_norm("channel_layer_norm_silu" if silu else "channel_layer_norm")(x, weight, bias, settings(eps))


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, per_frame: bool, silu: bool) -> Tensor:
    """x (B, T, C, H, W), weight and bias (C,) -> (B, T, C, H, W)."""
    values = settings(groups, eps, 1 if per_frame else 0)
    return _affine_norm("group_norm_silu" if silu else "group_norm")(x, weight, bias, values)
