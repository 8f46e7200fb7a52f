"""Linear layers, whose weights may be stored in fewer bits than they are computed with."""

from __future__ import annotations

from typing import Optional

import mindspore as ms
from mindspore import Tensor, ops

from opensora.ops.cpu import linear as kernels
from opensora.ops.cpu.custom_op import gemm_available
from opensora.ops.precision import float32_on_cpu

GROUP = 32  # int8 weights with one scale, as in Q8_0 of GGUF


@float32_on_cpu
def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None, frozen: bool = False) -> Tensor:
    """x W^T + b over the last axis: x (..., in), weight (out, in), bias (out,) -> (..., out).

    `frozen`: weight and bias get no gradients, which saves a third of the backward pass.
    """
    if gemm_available(x.dtype):
        return kernels.linear(x, weight, bias, frozen)
    y = ops.MatMul(transpose_b=True)(x.reshape(-1, x.shape[-1]), weight)
    if bias is not None:
        y = ops.bias_add(y, bias)
    return y.reshape(x.shape[:-1] + (weight.shape[0],))


@float32_on_cpu
def stacked_linear(x: Tensor, *parameters: Tensor) -> Tensor:
    """The outputs of three linear layers of the same size, one after another along the batch.

    x (B, ..., in), parameters: three times a weight (out, in) and a bias (out,) -> (3 B, ..., out).
    """
    if gemm_available(x.dtype):
        return kernels.stacked_linear(x, *parameters)
    return ops.cat([linear(x, parameters[i], parameters[i + 1]) for i in (0, 2, 4)], 0)


@float32_on_cpu
def add_low_rank(y: Tensor, x: Tensor, a: Tensor, b: Tensor, factor: float) -> Tensor:
    """y + factor B A x over the last axis: y (..., out), x (..., in), a (rank, in), b (out, rank) -> (..., out)."""
    h = linear(x, a)
    if factor != 1:
        h = h * factor
    return y + linear(h, b)


def stored_linear(x: Tensor, weight: Tensor, scale: Optional[Tensor], bias: Optional[Tensor] = None) -> Tensor:
    """`linear` for weights of another dtype than x; the products are those of the widened weights.

    Only x gets gradients.

    Args:
        x: (..., in), and bias (out,): of the dtype to compute in, that of the result.
        weight: (out, in), bfloat16 or float16, which are exact in float32; or int8.
        scale: of int8, (out, in / 32) float16: the weights are weight * scale in groups of 32 along a row.
    """
    if not gemm_available(ms.float32):
        return linear(x, widened_weight(weight, scale, x.dtype), bias, True)
    rows = x.reshape(-1, x.shape[-1]).astype(ms.float32)
    y = kernels.stored_linear(rows, weight, scale, None if bias is None else bias.astype(ms.float32), widened_weight)
    return y.astype(x.dtype).reshape(x.shape[:-1] + (weight.shape[0],))


def widened_weight(weight: Tensor, scale: Optional[Tensor], dtype) -> Tensor:
    """A weight (out, in) of `stored_linear` in `dtype`."""
    if scale is None:
        return weight.astype(dtype)
    groups = weight.reshape(scale.shape + (GROUP,)).astype(ms.float32)
    return (groups * scale.astype(ms.float32).expand_dims(2)).reshape(weight.shape).astype(dtype)


@float32_on_cpu
def rows_at(table: Tensor, indices: Tensor) -> Tensor:
    """The rows of `table` (rows, D) at integer `indices` (...): (..., D)."""
    return ops.gather(table, indices, 0)
