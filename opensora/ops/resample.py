"""Upsampling by 2: nearest neighbor, and linear with half-pixel centers (`align_corners=False`)."""

from __future__ import annotations

from mindspore import Tensor, ops

from opensora.ops.cpu import layout as kernels
from opensora.ops.cpu.custom_op import available
from opensora.ops.layout import folded
from opensora.ops.precision import float32_on_cpu


def _interleave(even: Tensor, odd: Tensor, axis: int) -> Tensor:
    """even[0], odd[0], even[1], odd[1], ... along `axis`."""
    shape = even.shape
    return ops.stack((even, odd), axis + 1).reshape(shape[:axis] + (2 * shape[axis],) + shape[axis + 1 :])


@ops.constexpr
def _doubled(shape: tuple, *axes: int) -> tuple:
    return tuple(2 * size if axis in axes else size for axis, size in enumerate(shape))


@float32_on_cpu
def nearest_2x(x: Tensor, axis: int) -> Tensor:
    """Repeats every element along `axis`: y[2k] = y[2k+1] = x[k]."""
    if available(x.dtype):
        return kernels.upsample_axis_nearest_2x(folded(x, axis)).reshape(_doubled(x.shape, axis))
    return _interleave(x, x, axis)


@float32_on_cpu
def upsample_linear_2x(x: Tensor, axis: int) -> Tensor:
    """Linear interpolation to twice the length: y[2k] = (3 x[k] + x[k-1]) / 4, y[2k+1] = (3 x[k] + x[k+1]) / 4.

    Indices are clamped at the ends. Applied to several axes in turn, this is bilinear or trilinear interpolation.
    """
    if available(x.dtype):
        return kernels.upsample_axis_linear_2x(folded(x, axis)).reshape(_doubled(x.shape, axis))
    length = x.shape[axis]
    if length == 1:
        return nearest_2x(x, axis)
    first, body_low = ops.split(x, (1, length - 1), axis)
    body_high, last = ops.split(x, (length - 1, 1), axis)
    before = ops.cat((first, body_high), axis)
    after = ops.cat((body_low, last), axis)
    near = 0.75 * x
    return _interleave(near + 0.25 * before, near + 0.25 * after, axis)


@float32_on_cpu
def upsample_nearest_2x(x: Tensor) -> Tensor:
    """`nearest_2x` of height and width, x (B, T, C, H, W)."""
    if available(x.dtype):
        return kernels.upsample_nearest_2x(x.reshape((-1,) + x.shape[3:])).reshape(_doubled(x.shape, 3, 4))
    return nearest_2x(nearest_2x(x, 3), 4)


@float32_on_cpu
def upsample_bilinear_2x(x: Tensor) -> Tensor:
    """`upsample_linear_2x` of height and width, x (B, T, C, H, W)."""
    if available(x.dtype):
        return kernels.upsample_bilinear_2x(x.reshape((-1,) + x.shape[3:])).reshape(_doubled(x.shape, 3, 4))
    return upsample_linear_2x(upsample_linear_2x(x, 3), 4)
