"""Kernels of `opensora.ops.linear`: linear.cc, stored_linear.cc."""

from __future__ import annotations

from functools import cache
from typing import Callable, Optional

import mindspore as ms
from mindspore import Tensor, ops

from opensora.ops.cpu.custom_op import custom_op


def _output_shape(x, weight, *bias):
    return [*x[:-1], weight[0]]


@ops.constexpr
def _is_graph_mode() -> bool:
    return ms.get_context("mode") == ms.GRAPH_MODE


def no_gradient(x: Tensor) -> Optional[Tensor]:
    """The gradient of an input that gets none. Graph mode needs zeros, and removes them from the graph."""
    return ops.zeros_like(x) if _is_graph_mode() else None


def _input_grad():
    return custom_op("linear_input_grad", lambda weight, dy: [*dy[:-1], weight[1]])


@cache
def _linear(has_bias: bool, frozen: bool):
    input_grad = _input_grad()
    weight_grad = custom_op("linear_weight_grad", lambda x, dy: [dy[-1], x[-1]])
    bias_grad = custom_op("linear_bias_grad", lambda dy: [dy[-1]])

    def bprop(x, weight, out, dout):
        return input_grad(weight, dout), weight_grad(x, dout)

    def bias_bprop(x, weight, bias, out, dout):
        return input_grad(weight, dout), weight_grad(x, dout), bias_grad(dout)

    def frozen_bprop(x, weight, out, dout):
        return input_grad(weight, dout), no_gradient(weight)

    def frozen_bias_bprop(x, weight, bias, out, dout):
        return input_grad(weight, dout), no_gradient(weight), no_gradient(bias)

    if has_bias:
        return custom_op("linear_bias", _output_shape, bprop=frozen_bias_bprop if frozen else bias_bprop)
    return custom_op("linear", _output_shape, bprop=frozen_bprop if frozen else bprop)


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor], frozen: bool = False) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) or None -> (..., out); `frozen`: x alone gets gradients."""
    return _linear(False, frozen)(x, weight) if bias is None else _linear(True, frozen)(x, weight, bias)


@cache
def _stacked_linear():
    weight_and_bias = (lambda x, dy: [dy[-1], x[-1]], lambda x, dy: [dy[-1]])
    input_grad = custom_op("stacked_linear_input_grad", lambda a, b, c, dy: [dy[0] // 3, *dy[1:-1], a[1]])
    weight_grad = custom_op("stacked_linear_weight_grad", *(weight_and_bias * 3))

    def bprop(x, weight_a, bias_a, weight_b, bias_b, weight_c, bias_c, out, dout):
        dweight_a, dbias_a, dweight_b, dbias_b, dweight_c, dbias_c = weight_grad(x, dout)
        dx = input_grad(weight_a, weight_b, weight_c, dout)
        return dx, dweight_a, dbias_a, dweight_b, dbias_b, dweight_c, dbias_c

    return custom_op("stacked_linear", lambda x, weight, *_: [3 * x[0], *x[1:-1], weight[0]], bprop=bprop)


def stacked_linear(x: Tensor, *parameters: Tensor) -> Tensor:
    """x (B, ..., in), three times a weight (out, in) and a bias (out,) -> (3 B, ..., out)."""
    return _stacked_linear()(x, *parameters)


@cache
def _stored_linear(dtype, has_bias: bool, widen: Callable):
    input_grad = _input_grad()

    def dx(weight, scale, dy):
        return input_grad(widen(weight, scale, ms.float32), dy)

    def bprop(x, weight, out, dout):
        return dx(weight, None, dout), no_gradient(weight)

    def bias_bprop(x, weight, bias, out, dout):
        return dx(weight, None, dout), no_gradient(weight), no_gradient(bias)

    def int8_bprop(x, weight, scale, out, dout):
        return dx(weight, scale, dout), no_gradient(weight), no_gradient(scale)

    def int8_bias_bprop(x, weight, scale, bias, out, dout):
        return dx(weight, scale, dout), no_gradient(weight), no_gradient(scale), no_gradient(bias)

    # Four functions, because graph mode takes none with a variable number of arguments.
    bprops: dict[tuple[bool, bool], Callable] = {
        (False, False): bprop,
        (False, True): bias_bprop,
        (True, False): int8_bprop,
        (True, True): int8_bias_bprop,
    }
    name = {ms.bfloat16: "linear_bfloat16", ms.float16: "linear_float16", ms.int8: "linear_int8"}[dtype]
    dtypes = [ms.float32, dtype, *([ms.float16] if dtype == ms.int8 else []), *([ms.float32] if has_bias else [])]
    return custom_op(name, _output_shape, bprop=bprops[dtype == ms.int8, has_bias], dtypes=dtypes)


def stored_linear(
    x: Tensor, weight: Tensor, scale: Optional[Tensor], bias: Optional[Tensor], widen: Callable
) -> Tensor:
    """x (rows, in), bias (out,) float32, weight (out, in) of `opensora.ops.linear.stored_linear` -> (rows, out).

    Args:
        widen: (weight, scale, dtype) -> the weight in that dtype, for the gradient of x; nothing else gets gradients.
    """
    inputs = [x, weight, *([] if scale is None else [scale]), *([] if bias is None else [bias])]
    return _stored_linear(weight.dtype, bias is not None, widen)(*inputs)
