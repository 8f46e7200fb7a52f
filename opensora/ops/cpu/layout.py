"""Kernels of `opensora.ops.layout` and `opensora.ops.resample`: permute.cc, slice_concat.cc, upsample.cc."""

from __future__ import annotations

from functools import cache

from mindspore import Tensor, ops

from opensora.ops.cpu.custom_op import custom_op, exact_tensor, settings


@cache
def _permute():
    inverse = custom_op("permute", 0)

    def bprop(x, geometry, inverse_geometry, out, dout):
        dx = inverse(dout, inverse_geometry, geometry)
        return dx, ops.zeros_like(geometry), ops.zeros_like(inverse_geometry)

    return custom_op("permute", 0, bprop=bprop)


@ops.constexpr
def _geometry(shape: tuple, axes: tuple) -> Tensor:
    return exact_tensor(shape + axes)


@ops.constexpr
def _inverse_geometry(shape: tuple, axes: tuple) -> Tensor:
    return exact_tensor(tuple(shape[axis] for axis in axes) + tuple(axes.index(axis) for axis in range(len(axes))))


def permute(x: Tensor, axes: tuple) -> Tensor:
    """x with its axes permuted, contiguous."""
    shape = tuple([x.shape[axis] for axis in axes])
    return _permute()(x, _geometry(x.shape, axes), _inverse_geometry(x.shape, axes)).reshape(shape)


def _axis_op(name: str, *sizes: int, bprop=None):
    """An operator on x (outer, n, inner) and settings, with outputs (outer, size, inner)."""
    return custom_op(name, *[lambda x, _, size=size: [x[0], size, x[2]] for size in sizes], bprop=bprop)


@cache
def _slice_op(size: int, length: int):
    grad = _axis_op("slice_grad", size)

    def bprop(x, start, out, dout):
        return grad(dout, start), ops.zeros_like(start)

    return _axis_op("slice", length, bprop=bprop)


def slice_axis(x: Tensor, start: int, length: int) -> Tensor:
    """x (outer, n, inner) -> (outer, length, inner)."""
    return _slice_op(x.shape[1], length)(x, settings(start))


def _concat_shape(a, b):
    return [a[0], a[1] + b[1], a[2]]


@cache
def _split_op(first: int, second: int):
    concat_halves = custom_op("concat", _concat_shape)

    def bprop(x, at, out, dout):
        return concat_halves(dout[0], dout[1]), ops.zeros_like(at)

    return _axis_op("split", first, second, bprop=bprop)


def split(x: Tensor, at: int) -> tuple[Tensor, Tensor]:
    """x (outer, n, inner) -> (outer, at, inner), (outer, n - at, inner)."""
    return _split_op(at, x.shape[1] - at)(x, settings(at))


@cache
def _concat_op(first: int, second: int):
    split_gradient = _axis_op("split", first, second)

    def bprop(a, b, out, dout):
        return split_gradient(dout, settings(first))

    return custom_op("concat", _concat_shape, bprop=bprop)


def concat(a: Tensor, b: Tensor) -> Tensor:
    """(outer, n, inner), (outer, m, inner) -> (outer, n + m, inner)."""
    return _concat_op(a.shape[1], b.shape[1])(a, b)


@cache
def _upsample_op(name: str, *axes: int):
    """An operator that doubles the size of some of three axes."""

    def scaled(shape, numerator, denominator):
        return [size * numerator // denominator if axis in axes else size for axis, size in enumerate(shape)]

    grad = custom_op(f"{name}_grad", lambda shape: scaled(shape, 1, 2))

    def bprop(x, out, dout):
        return (grad(dout),)

    return custom_op(name, lambda shape: scaled(shape, 2, 1), bprop=bprop)


def upsample_axis_nearest_2x(x: Tensor) -> Tensor:
    """x (outer, n, inner) -> (outer, 2 n, inner)."""
    return _upsample_op("upsample_axis_nearest_2x", 1)(x)


def upsample_axis_linear_2x(x: Tensor) -> Tensor:
    """x (outer, n, inner) -> (outer, 2 n, inner)."""
    return _upsample_op("upsample_axis_linear_2x", 1)(x)


def upsample_nearest_2x(x: Tensor) -> Tensor:
    """x (frames, H, W) -> (frames, 2 H, 2 W)."""
    return _upsample_op("upsample_nearest_2x", 1, 2)(x)


def upsample_bilinear_2x(x: Tensor) -> Tensor:
    """x (frames, H, W) -> (frames, 2 H, 2 W)."""
    return _upsample_op("upsample_bilinear_2x", 1, 2)(x)
