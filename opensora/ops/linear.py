"""Linear layers."""

from __future__ import annotations

from typing import Optional

from mindspore import Tensor, ops

from opensora.ops.cpu import linear as kernels
from opensora.ops.cpu.custom_op import gemm_available
from opensora.ops.precision import float32_on_cpu


@float32_on_cpu
def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """x W^T + b over the last axis: x (..., in), weight (out, in), bias (out,) -> (..., out)."""
    rows = x.reshape(-1, x.shape[-1])
    if gemm_available(x.dtype):
        y = kernels.linear(rows, weight, bias)
    else:
        y = ops.MatMul(transpose_b=True)(rows, weight)
        if bias is not None:
            y = ops.bias_add(y, bias)
    return y.reshape(x.shape[:-1] + (weight.shape[0],))


@float32_on_cpu
def rows_at(table: Tensor, indices: Tensor) -> Tensor:
    """The rows of `table` (rows, D) at integer `indices` (...): (..., D)."""
    return ops.gather(table, indices, 0)
