"""Kernels of `opensora.ops.conv`: convolution.cc."""

from __future__ import annotations

import functools
from typing import Optional

from mindspore import Tensor, ops

from opensora.ops.cpu.custom_op import custom_op, settings


@functools.cache
def _conv3d(stride: int, padding: tuple, replicate_pad: int, has_cache: bool):
    """The operator on ([cache,] x, weight, bias, settings)."""
    top, bottom, left, right = padding
    name, i = ("conv3d_cached", 1) if has_cache else ("conv3d", 0)  # x is input i
    input_grad = custom_op(f"{name}_input_grad", *range(i + 1))
    weight_grad = custom_op(f"{name}_weight_grad", i + 1, i + 2)

    def output_shape(*shapes):
        (b, t, _, h, w), (o, _, frames, height, width) = shapes[i], shapes[i + 1]
        t = t + (shapes[0][1] if has_cache else replicate_pad) - frames
        return [
            b,
            t // stride + 1,
            o,
            (h + top + bottom - height) // stride + 1,
            (w + left + right - width) // stride + 1,
        ]

    def bprop(x, weight, bias, values, out, dout):
        dweight, dbias = weight_grad(x, weight, bias, values, dout)
        return input_grad(x, weight, bias, values, dout), dweight, dbias, ops.zeros_like(values)

    def bprop_with_cache(cache, x, weight, bias, values, out, dout):
        dcache, dx = input_grad(cache, x, weight, bias, values, dout)
        dweight, dbias = weight_grad(cache, x, weight, bias, values, dout)
        return dcache, dx, dweight, dbias, ops.zeros_like(values)

    return custom_op(name, output_shape, bprop=bprop_with_cache if has_cache else bprop)


def supports(weight: Tensor, stride: int) -> bool:
    """Whether `conv3d` supports kernels of this size with this stride."""
    return stride in (1, 2) and weight.shape[-2:] in ((1, 1), (3, 3))


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int,
    padding: tuple,
    cache: Optional[Tensor] = None,
    replicate_pad: int = 0,
) -> Tensor:
    """x (B, T, C, H, W), weight (O, C, k, k', k'), cache (B, P, C, H, W) or None -> (B, T', O, H', W').

    Arguments as in `opensora.ops.conv.conv3d`.
    """
    values = settings(*padding, replicate_pad, stride)
    if cache is None:
        return _conv3d(stride, padding, replicate_pad, False)(x, weight, bias, values)
    return _conv3d(stride, padding, 0, True)(cache, x, weight, bias, values)
