"""Doubling of axes: nearest neighbour, and linear with half-pixel centres (`align_corners=False`)."""
from __future__ import annotations

from mindspore import Tensor, ops


def _interleave(even: Tensor, odd: Tensor, axis: int) -> Tensor:
    """even[0], odd[0], even[1], odd[1], ... along `axis`."""
    shape = even.shape
    return ops.stack((even, odd), axis + 1).reshape(shape[:axis] + (2 * shape[axis],) + shape[axis + 1:])


def nearest_2x(x: Tensor, axis: int) -> Tensor:
    """Every element along `axis` twice."""
    return _interleave(x, x, axis)


def linear_2x(x: Tensor, axis: int) -> Tensor:
    """Linear interpolation to twice the length: y[2k] = (3 x[k] + x[k-1]) / 4, y[2k+1] = (3 x[k] + x[k+1]) / 4.

    Indices are clamped at the ends. Applied axis by axis this is bilinear and trilinear interpolation.
    """
    length = x.shape[axis]
    if length == 1:
        return nearest_2x(x, axis)
    first, body_low = ops.split(x, (1, length - 1), axis)
    body_high, last = ops.split(x, (length - 1, 1), axis)
    before = ops.cat((first, body_high), axis)
    after = ops.cat((body_low, last), axis)
    near = 0.75 * x
    return _interleave(near + 0.25 * before, near + 0.25 * after, axis)
