"""Activation functions."""

from __future__ import annotations

from mindspore import Tensor, ops

from opensora.ops.backend import on_ascend
from opensora.ops.cpu import elementwise as kernels
from opensora.ops.cpu.custom_op import available, zeros
from opensora.ops.precision import float32_on_cpu


@float32_on_cpu
def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU, x sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)) (Hendrycks & Gimpel 2016, section 2).

    Ascend has a fused operator. On a CPU elementwise operators are several times faster than MindSpore's fused one.
    """
    if on_ascend():
        return ops.gelu(x, approximate="tanh")
    if available(x.dtype):
        return kernels.bias_gelu(x, _no_bias(x.shape[-1]))
    return x * ops.sigmoid(x * (1.5957691216057308 + 0.07135481627159756 * x * x))


@ops.constexpr
def _no_bias(width: int) -> Tensor:
    return zeros(width)


@float32_on_cpu
def bias_gelu_tanh(x: Tensor, bias: Tensor) -> Tensor:
    """`gelu_tanh` of x (..., D) + bias (D)."""
    if available(x.dtype):
        return kernels.bias_gelu(x, bias)
    return gelu_tanh(x + bias)


@float32_on_cpu
def gated_gelu_tanh(x: Tensor, y: Tensor) -> Tensor:
    """`gelu_tanh` of x, times y (Shazeer 2020, arXiv:2002.05202, GEGLU)."""
    return gelu_tanh(x) * y


@float32_on_cpu
def gelu(x: Tensor) -> Tensor:
    """x Phi(x), with the normal distribution function Phi (Hendrycks & Gimpel 2016, eq. 1)."""
    return x * 0.5 * (1 + ops.erf(x * 0.7071067811865476))


@float32_on_cpu
def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), the coarser approximation of GELU that CLIP has (Hendrycks & Gimpel 2016, section 2)."""
    return x * ops.sigmoid(x * 1.702)
