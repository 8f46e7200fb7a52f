"""Kernels of `opensora.ops.linear`: linear.cc."""

from __future__ import annotations

from functools import cache
from typing import Optional

from mindspore import Tensor

from opensora.ops.cpu.custom_op import custom_op


def _output_shape(x, weight, *bias):
    return [x[0], weight[0]]


@cache
def _linear(has_bias: bool):
    input_grad = custom_op("linear_input_grad", lambda weight, dy: [dy[0], weight[1]])
    weight_grad = custom_op("linear_weight_grad", lambda x, dy: [dy[1], x[1]])
    bias_grad = custom_op("linear_bias_grad", lambda dy: [dy[1]])

    def bprop(x, weight, out, dout):
        return input_grad(weight, dout), weight_grad(x, dout)

    def bias_bprop(x, weight, bias, out, dout):
        return input_grad(weight, dout), weight_grad(x, dout), bias_grad(dout)

    if has_bias:
        return custom_op("linear_bias", _output_shape, bprop=bias_bprop)
    return custom_op("linear", _output_shape, bprop=bprop)


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    """x (rows, in), weight (out, in), bias (out,) or None -> (rows, out)."""
    return _linear(False)(x, weight) if bias is None else _linear(True)(x, weight, bias)
