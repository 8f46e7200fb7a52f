"""Kernels of `opensora.ops.activations` and `opensora.ops.rope`: elementwise.cc."""

from __future__ import annotations

from functools import cache

from mindspore import Tensor, ops

from opensora.ops.cpu.custom_op import custom_op, settings


@cache
def _bias_gelu():
    grad = custom_op("bias_gelu_grad", 0, 1)

    def bprop(x, bias, out, dout):
        return grad(x, bias, dout)

    return custom_op("bias_gelu", 0, bprop=bprop)


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """x (..., D), bias (D,) -> (..., D)."""
    return _bias_gelu()(x, bias)


@cache
def _rope():
    inverse = custom_op("rope", 0)

    def bprop(x, cos, sin, values, inverse_values, out, dout):
        dx = inverse(dout, cos, sin, inverse_values, values)
        return dx, ops.zeros_like(cos), ops.zeros_like(sin), ops.zeros_like(values), ops.zeros_like(inverse_values)

    return custom_op("rope", 0, bprop=bprop)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, rows: int) -> Tensor:
    """x (B, S, N, D), cos and sin (S, 1, 3, D / 6) -> (B, S, N, D); rotates the first rows of the batch only."""
    return _rope()(x, cos, sin, settings(1, rows), settings(-1, rows))
