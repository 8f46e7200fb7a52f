"""Order of axes, and parts of them.

In PyNative mode MindSpore rearranges and cuts by views, which the next operator has to have copied; on a CPU that takes
some twenty times as long as the kernels here.
"""

from __future__ import annotations

from math import prod

from mindspore import Tensor, ops

from opensora.ops.cpu import kernels


def permute(x: Tensor, axes: tuple) -> Tensor:
    """x with its axes in another order, copied."""
    if kernels.available(x.dtype):
        return kernels.permute(x, axes)
    return x.transpose(axes)


def swap_frames_channels(x: Tensor) -> Tensor:
    """(B, C, T, H, W) <-> (B, T, C, H, W)."""
    return permute(x, (0, 2, 1, 3, 4))


def slice_axis(x: Tensor, axis: int, start: int, stop: int) -> Tensor:
    """x[start:stop] along `axis`; both are 0 or more."""
    if kernels.available(x.dtype):
        return kernels.part(folded(x, axis), start, stop - start).reshape(_with_length(x.shape, axis, stop - start))
    return ops.narrow(x, axis, start, stop - start)


def split(x: Tensor, axis: int, at: int) -> tuple[Tensor, Tensor]:
    """x[:at] and x[at:] along `axis`; neither is empty."""
    rest = x.shape[axis] - at
    if kernels.available(x.dtype):
        front, back = kernels.cut(folded(x, axis), at)
        return front.reshape(_with_length(x.shape, axis, at)), back.reshape(_with_length(x.shape, axis, rest))
    return ops.split(x, (at, rest), axis)


def concat(front: Tensor, back: Tensor, axis: int) -> Tensor:
    """One behind the other along `axis`."""
    if kernels.available(front.dtype):
        shape = _with_length(front.shape, axis, front.shape[axis] + back.shape[axis])
        return kernels.join(folded(front, axis), folded(back, axis)).reshape(shape)
    return ops.cat((front, back), axis)


def folded(x: Tensor, axis: int) -> Tensor:
    """Three axes: what is before `axis`, the axis, what is behind."""
    return x.reshape(_around(x.shape, axis))


@ops.constexpr
def _around(shape: tuple, axis: int) -> tuple:
    """The sizes of what is before `axis`, of the axis, and of what is behind; constants in graph mode."""
    return prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])


@ops.constexpr
def _with_length(shape: tuple, axis: int, length: int) -> tuple:
    return shape[:axis] + (length,) + shape[axis + 1 :]
