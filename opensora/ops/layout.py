"""Permutation of axes, slicing, splitting and concatenation, with contiguous results.

In PyNative mode MindSpore's own operators return views, which the next operator copies element by element: on a CPU
about twenty times slower than these kernels.
"""

from __future__ import annotations

from math import prod

from mindspore import Tensor, ops

from opensora.ops.cpu import layout as kernels
from opensora.ops.cpu.custom_op import available
from opensora.ops.precision import float32_on_cpu


@float32_on_cpu
def permute(x: Tensor, axes: tuple) -> Tensor:
    """x with its axes permuted, contiguous."""
    if available(x.dtype):
        return kernels.permute(x, axes)
    return x.transpose(axes)


def swap_frames_channels(x: Tensor) -> Tensor:
    """(B, C, T, H, W) <-> (B, T, C, H, W)."""
    return permute(x, (0, 2, 1, 3, 4))


@float32_on_cpu
def slice_axis(x: Tensor, axis: int, start: int, stop: int) -> Tensor:
    """x[start:stop] along `axis`, 0 <= start < stop."""
    length = stop - start
    if available(x.dtype):
        return kernels.slice_axis(folded(x, axis), start, length).reshape(_with_length(x.shape, axis, length))
    return ops.narrow(x, axis, start, length)


@float32_on_cpu
def split(x: Tensor, axis: int, at: int) -> tuple[Tensor, Tensor]:
    """x[:at] and x[at:] along `axis`, neither empty."""
    rest = x.shape[axis] - at
    if available(x.dtype):
        front, back = kernels.split(folded(x, axis), at)
        return front.reshape(_with_length(x.shape, axis, at)), back.reshape(_with_length(x.shape, axis, rest))
    return ops.split(x, (at, rest), axis)


@float32_on_cpu
def concat(front: Tensor, back: Tensor, axis: int) -> Tensor:
    """Concatenates along `axis`."""
    if available(front.dtype):
        shape = _with_length(front.shape, axis, front.shape[axis] + back.shape[axis])
        return kernels.concat(folded(front, axis), folded(back, axis)).reshape(shape)
    return ops.cat((front, back), axis)


@float32_on_cpu
def pad_end(x: Tensor, axis: int, count: int) -> Tensor:
    """Appends `count` zeros along `axis`."""
    return concat(x, ops.zeros(_with_length(x.shape, axis, count), x.dtype), axis)


@float32_on_cpu
def unstack(x: Tensor) -> tuple[Tensor, ...]:
    """x[0], x[1], ..."""
    return ops.unstack(x, 0)


@float32_on_cpu
def select(x: Tensor, other: Tensor, condition: Tensor) -> Tensor:
    """x where `condition`, which broadcasts to it, is True, else `other`."""
    return ops.where(condition, x, other)


def folded(x: Tensor, axis: int) -> Tensor:
    """x reshaped to (outer, n, inner), where n is the size of `axis`."""
    return x.reshape(_outer_inner(x.shape, axis))


@ops.constexpr
def _outer_inner(shape: tuple, axis: int) -> tuple:
    """(outer, n, inner); a constant in graph mode."""
    return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])


@ops.constexpr
def _with_length(shape: tuple, axis: int, length: int) -> tuple:
    return shape[:axis] + (length,) + shape[axis + 1 :]
