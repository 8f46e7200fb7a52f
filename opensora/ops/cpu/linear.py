"""Kernels of `opensora.ops.linear`: linear.cc, stored_linear.cc."""

from __future__ import annotations

from functools import cache
from typing import Optional

import mindspore as ms
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


@cache
def _stored_linear(dtype, has_bias: bool):
    name = {ms.bfloat16: "linear_bfloat16", ms.float16: "linear_float16", ms.int8: "linear_int8"}[dtype]
    dtypes = [ms.float32, dtype, *([ms.float16] if dtype == ms.int8 else []), *([ms.float32] if has_bias else [])]
    return custom_op(name, _output_shape, dtypes=dtypes)


def stored_linear(x: Tensor, weight: Tensor, scale: Optional[Tensor], bias: Optional[Tensor]) -> Tensor:
    """x (rows, in), bias (out,): float32; weight (out, in) as in `opensora.ops.linear.stored_linear` -> (rows, out)."""
    inputs = [x, weight, *([] if scale is None else [scale]), *([] if bias is None else [bias])]
    return _stored_linear(weight.dtype, bias is not None)(*inputs)
