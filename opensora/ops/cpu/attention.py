"""Kernels of `opensora.ops.attention`: attention.cc."""

from __future__ import annotations

from functools import cache

from mindspore import Tensor, ops

from opensora.ops.cpu.custom_op import custom_op, settings


@cache
def _self_attention():
    grad = custom_op("self_attention_grad", 0)

    def bprop(qkv, bias, scale, out, dout):
        return grad(qkv, bias, scale, out[0], out[1], dout[0]), ops.zeros_like(bias), ops.zeros_like(scale)

    def output_shape(qkv, *others):
        return [qkv[0] // 3, *qkv[1:]]

    return custom_op("self_attention", output_shape, lambda qkv, *others: [qkv[0] // 3, qkv[2], qkv[1]], bprop=bprop)


def self_attention(qkv: Tensor, bias: Tensor, scale: float) -> Tensor:
    """qkv (3 B, S, N, D): queries, keys and values; bias with sizes (B, N, S, S) or 1 -> (B, S, N, D)."""
    return _self_attention()(qkv, bias, settings(scale))[0]


def _logsumexp_shape(q, *others):
    return [q[0], q[2], q[1]]


@cache
def _attention():
    grad = custom_op("attention_grad", 0, 1, 2)

    def bprop(q, k, v, bias, scale, out, dout):
        dq, dk, dv = grad(q, k, v, bias, scale, out[0], out[1], dout[0])
        return dq, dk, dv, ops.zeros_like(bias), ops.zeros_like(scale)

    return custom_op("attention", 0, _logsumexp_shape, bprop=bprop)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    """q (B, S, N, D), k and v (B, L, N, D), bias with sizes (B, N, S, L) or 1 -> (B, S, N, D)."""
    return _attention()(q, k, v, bias, settings(scale))[0]
