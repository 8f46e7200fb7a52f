"""Upsampling by 2: nearest neighbor, and linear with half-pixel centers (`align_corners=False`); halving of time."""

from __future__ import annotations

from typing import Callable

import mindspore as ms
from mindspore import Tensor, ops

from opensora.ops.cpu import layout as kernels
from opensora.ops.cpu.custom_op import available
from opensora.ops.layout import concat, folded, slice_axis, split
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


def double_later_frames(x: Tensor, upsample: Callable[[Tensor, int], Tensor]) -> Tensor:
    """`upsample`, one of the above, along time of all frames but the first: (B, 1 + n, ...) -> (B, 1 + 2n, ...)."""
    if x.shape[1] == 1:
        return x
    first, later = split(x, 1, 1)
    return concat(first, upsample(later, 1), 1)


@float32_on_cpu
def causal_windows(x: Tensor) -> Tensor:
    """Every second frame of x (B, T, ...) and the two before it, of which the first frame has copies.

    Returns:
        (B ceil(T / 2), 3, ...): for output frame k the frames 2k - 2, 2k - 1 and 2k.
    """
    return ops.gather(x, _window_frames(x.shape[1]), 1).reshape((-1, 3) + x.shape[2:])


@ops.constexpr
def _window_frames(frames: int) -> Tensor:
    return Tensor([max(0, last + k) for last in range(0, frames, 2) for k in (-2, -1, 0)], ms.int32)


@float32_on_cpu
def mean_of_windows(windows: Tensor) -> Tensor:
    """The mean over the frames of each of the `causal_windows`: (N, 3, ...) -> (N, 1, ...)."""
    # On a CPU the sum of slices takes less than half the time of `mean`.
    first, second, last = slice_axis(windows, 1, 0, 1), slice_axis(windows, 1, 1, 2), slice_axis(windows, 1, 2, 3)
    return (first + second + last) / 3
