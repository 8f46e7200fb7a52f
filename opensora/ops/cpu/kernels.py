"""The C++ kernels as operators with gradients, for float32 tensors on a CPU, in PyNative and in graph mode.

Each computes what the function of its name in `opensora.ops` does, which calls it where `available` says so. The
library is built and loaded, and operators are made, at their first use.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import count
from pathlib import Path
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from opensora.errors import UserError
from opensora.ops.cpu.build import MARCH, SWITCH, library
from opensora.ops.cpu.runtime import tune_process


@ops.constexpr
def available(dtype) -> bool:
    """Whether the kernels serve tensors of this type here; a constant to the compiler of graph mode."""
    if ms.get_context("device_target") != "CPU":
        return False
    tune_process()
    return dtype == ms.float32 and library() is not None


@cache
def _tensor(values: tuple) -> Tensor:
    array = np.array(values, np.float32)
    if any(isinstance(value, int) and int(number) != value for value, number in zip(values, array)):
        raise UserError(f"{values}: the CPU kernels take sizes up to 2^24, or multiples of large powers of two")
    return Tensor(array)


@ops.constexpr
def numbers(*values: float) -> Tensor:
    """Settings of a kernel, which takes nothing but tensors."""
    return _tensor(values)


_made = count(1)


def _operator(name: str, *outputs, bprop=None):
    """The kernel `name`. Each output is told by the input whose shape it has, or by a function of the inputs' shapes."""

    def shape(*shapes):
        results = [shapes[output] if isinstance(output, int) else output(*shapes) for output in outputs]
        return results[0] if len(results) == 1 else tuple(results)

    def dtype(*dtypes):
        return dtypes[0] if len(outputs) == 1 else (dtypes[0],) * len(outputs)

    operator = ops.Custom(f"{library().path}:{name}", shape, dtype, "aot", bprop=bprop)
    # MindSpore keeps the shapes it once found for operators that look the same, whatever their functions say.
    operator.add_prim_attr("made", next(_made))
    return operator


# Norms


@cache
def _modulated():
    grad = _operator("modulated_layer_norm_grad", 0, 1, 1)

    def bprop(x, shift, scale, eps, out, dout):
        dx, dshift, dscale = grad(x, scale, eps, dout)
        return dx, dshift, dscale, ops.zeros_like(eps)

    return _operator("modulated_layer_norm", 0, bprop=bprop)


def modulated_layer_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float) -> Tensor:
    return _modulated()(x, shift, scale, numbers(eps))


@cache
def _rms():
    grad = _operator("rms_norm_grad", 0, 1)

    def bprop(x, weight, eps, out, dout):
        dx, dweight = grad(x, weight, eps, dout)
        return dx, dweight, ops.zeros_like(eps)

    return _operator("rms_norm", 0, bprop=bprop)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _rms()(x, weight, numbers(eps))


@cache
def _video_norm(name: str):
    """A norm of x by weight, bias and settings."""
    grad = _operator(f"{name}_grad", 0, 1, 2)

    def bprop(x, weight, bias, settings, out, dout):
        dx, dweight, dbias = grad(x, weight, bias, settings, dout)
        return dx, dweight, dbias, ops.zeros_like(settings)

    return _operator(name, 0, bprop=bprop)


def channel_layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, silu: bool) -> Tensor:
    return _video_norm("channel_layer_norm_silu" if silu else "channel_layer_norm")(x, weight, bias, numbers(eps))


def group_norm(x: Tensor, groups: int, weight: Tensor, bias: Tensor, eps: float, per_frame: bool, silu: bool) -> Tensor:
    settings = numbers(groups, eps, 1 if per_frame else 0)
    return _video_norm("group_norm_silu" if silu else "group_norm")(x, weight, bias, settings)


# Element by element


@cache
def _bias_gelu():
    grad = _operator("bias_gelu_grad", 0, 1)

    def bprop(x, bias, out, dout):
        return grad(x, bias, dout)

    return _operator("bias_gelu", 0, bprop=bprop)


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return _bias_gelu()(x, bias)


@cache
def _gated_residual():
    grad = _operator("gated_residual_grad", 0, 1)

    def bprop(x, gate, y, out, dout):
        dgate, dy = grad(gate, y, dout)
        return dout, dgate, dy

    return _operator("gated_residual", 0, bprop=bprop)


def gated_residual(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    return _gated_residual()(x, gate, y)


@cache
def _rope():
    rotate_back = _operator("rope", 0)

    def bprop(x, cos, sin, direction, out, dout):
        return (
            rotate_back(dout, cos, sin, -direction),
            ops.zeros_like(cos),
            ops.zeros_like(sin),
            ops.zeros_like(direction),
        )

    return _operator("rope", 0, bprop=bprop)


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return _rope()(x, cos, sin, numbers(1))


# Products of matrices

PRODUCTS = Path(ms.__file__).parent / "lib" / "libdnnl.so.2"  # oneDNN, which MindSpore brings along


@lru_cache(maxsize=1)
def has_products() -> bool:
    """Whether oneDNN can be loaded, which attention, linear maps and convolutions take products of matrices from."""
    try:
        ctypes.CDLL(str(PRODUCTS))
    except OSError:
        return False
    return bool(library().functions.has_products())


@ops.constexpr
def multiplies(dtype) -> bool:
    """Whether `attention`, `linear` and `convolve` serve tensors of this type here."""
    return available(dtype) and has_products()


# Attention


def _per_head_and_query(q, *others):
    return [q[0], q[2], q[1]]


@cache
def _attention():
    grad = _operator("attention_grad", 0, 1, 2)

    def bprop(q, k, v, bias, scale, out, dout):
        dq, dk, dv = grad(q, k, v, bias, scale, out[0], out[1], dout[0])
        return dq, dk, dv, ops.zeros_like(bias), ops.zeros_like(scale)

    return _operator("attention", 0, _per_head_and_query, bprop=bprop)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> Tensor:
    return _attention()(q, k, v, bias, numbers(scale))[0]


# Linear maps


def _rows_by_outputs(x, weight, *bias):
    return [x[0], weight[0]]


@cache
def _linear(has_bias: bool):
    input_grad = _operator("linear_input_grad", lambda weight, dy: [dy[0], weight[1]])
    weight_grad = _operator("linear_weight_grad", lambda x, dy: [dy[1], x[1]])
    bias_grad = _operator("linear_bias_grad", lambda dy: [dy[1]])

    def bprop(x, weight, out, dout):
        return input_grad(weight, dout), weight_grad(x, dout)

    def bias_bprop(x, weight, bias, out, dout):
        return input_grad(weight, dout), weight_grad(x, dout), bias_grad(dout)

    if has_bias:
        return _operator("linear_bias", _rows_by_outputs, bprop=bias_bprop)
    return _operator("linear", _rows_by_outputs, bprop=bprop)


def linear(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    """x (rows, in), weight (out, in), bias (out,) -> (rows, out)."""
    return _linear(False)(x, weight) if bias is None else _linear(True)(x, weight, bias)


# Convolutions


@cache
def _convolution(stride: int, padding: tuple, copies: int, has_past: bool):
    """The operator on ([past], x, weight, bias, settings) -> y, frames laid out (B, T, C, H, W)."""
    top, bottom, left, right = padding
    name, i = ("convolve_after", 1) if has_past else ("convolve", 0)  # x is input i
    inputs_grad = _operator(f"{name}_grad", *range(i + 1))
    parameters_grad = _operator(f"{name}_parameters_grad", i + 1, i + 2)

    def shape(*shapes):
        (b, t, _, h, w), (o, _, frames, height, width) = shapes[i], shapes[i + 1]
        t = t + (shapes[0][1] if has_past else copies) - frames
        return [
            b,
            t // stride + 1,
            o,
            (h + top + bottom - height) // stride + 1,
            (w + left + right - width) // stride + 1,
        ]

    if has_past:

        def bprop(past, x, weight, bias, settings, out, dout):
            dpast, dx = inputs_grad(past, x, weight, bias, settings, dout)
            dweight, dbias = parameters_grad(past, x, weight, bias, settings, dout)
            return dpast, dx, dweight, dbias, ops.zeros_like(settings)
    else:

        def bprop(x, weight, bias, settings, out, dout):
            dweight, dbias = parameters_grad(x, weight, bias, settings, dout)
            return inputs_grad(x, weight, bias, settings, dout), dweight, dbias, ops.zeros_like(settings)

    return _operator(name, shape, bprop=bprop)


def convolves(weight: Tensor, stride: int) -> bool:
    """Whether `convolve` knows filters of this shape."""
    return stride in (1, 2) and weight.shape[-2:] in ((1, 1), (3, 3))


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: tuple, past: Optional[Tensor] = None, copies: int = 0
) -> Tensor:
    """x (B, T, C, H, W), weight (O, C, k, k', k'), padding (top, bottom, left, right); before x stand the frames of
    `past`, or as many copies of its first."""
    settings = numbers(*padding, copies, stride)
    if past is None:
        return _convolution(stride, padding, copies, False)(x, weight, bias, settings)
    return _convolution(stride, padding, 0, True)(past, x, weight, bias, settings)


# Steps of an optimizer, in PyNative mode; all but `flatten` change tensors in place


@cache
def _in_place(name: str):
    """The output is a dummy: MindSpore has no operators without one."""
    return _operator(name, lambda *shapes: [1])


@cache
def _flatten(size: int):
    return _operator("flatten", lambda *shapes: [size])


def flatten(tensors: Sequence[Tensor], size: int) -> Tensor:
    """The elements of the tensors one behind the other, and zeros behind them: (size,)."""
    return _flatten(size)(*tensors)


def unflatten(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Gives the tensors the elements of `flat`."""
    _in_place("unflatten")(flat, *tensors)


def adamw(
    weights: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    gradient: Tensor,
    factor: float,
    learning_rate: float,
    weight_decay: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    step: int,
) -> None:
    settings = (
        factor,
        learning_rate,
        learning_rate * weight_decay,
        beta1,
        beta2,
        1 / (1 - beta1**step),
        1 / (1 - beta2**step),
        epsilon,
    )
    _in_place("adamw")(weights, exp_avg, exp_avg_sq, gradient, Tensor(np.array(settings, np.float32)))


def move_towards(shadow: Tensor, weights: Tensor, part: float) -> None:
    """shadow += (weights - shadow) * part"""
    _in_place("move_towards")(shadow, weights, Tensor(np.array([part], np.float32)))


# Layout


@cache
def _permute():
    permute_back = _operator("permute", 0)

    def bprop(x, there, back, out, dout):
        return permute_back(dout, back, there), ops.zeros_like(there), ops.zeros_like(back)

    return _operator("permute", 0, bprop=bprop)


@ops.constexpr
def _there(shape: tuple, axes: tuple) -> Tensor:
    return _tensor(shape + axes)


@ops.constexpr
def _back(shape: tuple, axes: tuple) -> Tensor:
    return _tensor(tuple(shape[axis] for axis in axes) + tuple(axes.index(axis) for axis in range(len(axes))))


def permute(x: Tensor, axes: tuple) -> Tensor:
    shape = tuple([x.shape[axis] for axis in axes])
    return _permute()(x, _there(x.shape, axes), _back(x.shape, axes)).reshape(shape)


def _joined_shape(front, back):
    return [front[0], front[1] + back[1], front[2]]


def _axis_operator(name: str, *lengths: int, bprop=None):
    """An operator on (outer, axis, inner) and settings; its outputs have axes of these lengths."""
    return _operator(name, *[lambda x, _, length=length: [x[0], length, x[2]] for length in lengths], bprop=bprop)


@cache
def _part_operator(length: int, count: int):
    put_back = _axis_operator("part_grad", length)

    def bprop(x, settings, out, dout):
        return put_back(dout, settings), ops.zeros_like(settings)

    return _axis_operator("part", count, bprop=bprop)


def part(x: Tensor, start: int, count: int) -> Tensor:
    """x (outer, n, inner) -> (outer, count, inner)."""
    return _part_operator(x.shape[1], count)(x, numbers(start))


@cache
def _cut_operator(front: int, back: int):
    joined = _operator("join", _joined_shape)

    def bprop(x, settings, out, dout):
        return joined(dout[0], dout[1]), ops.zeros_like(settings)

    return _axis_operator("cut", front, back, bprop=bprop)


def cut(x: Tensor, at: int) -> tuple[Tensor, Tensor]:
    """x (outer, n, inner) -> (outer, at, inner), (outer, n - at, inner)."""
    return _cut_operator(at, x.shape[1] - at)(x, numbers(at))


@cache
def _join_operator(front: int, back: int):
    parted = _axis_operator("cut", front, back)

    def bprop(x, y, out, dout):
        return parted(dout, numbers(front))

    return _operator("join", _joined_shape, bprop=bprop)


def join(front: Tensor, back: Tensor) -> Tensor:
    """(outer, n, inner), (outer, m, inner) -> (outer, n + m, inner)."""
    return _join_operator(front.shape[1], back.shape[1])(front, back)


@cache
def _doubling(name: str, *doubled_axes: int):
    """An operator on three axes, some of which it doubles."""

    def scaled(shape, up, down):
        return [size * up // down if axis in doubled_axes else size for axis, size in enumerate(shape)]

    grad = _operator(f"{name}_grad", lambda shape: scaled(shape, 1, 2))

    def bprop(x, out, dout):
        return (grad(dout),)

    return _operator(name, lambda shape: scaled(shape, 2, 1), bprop=bprop)


def nearest_2x(x: Tensor) -> Tensor:
    """x (outer, n, inner) -> (outer, 2 n, inner)."""
    return _doubling("nearest_2x", 1)(x)


def linear_2x(x: Tensor) -> Tensor:
    """x (outer, n, inner) -> (outer, 2 n, inner)."""
    return _doubling("linear_2x", 1)(x)


def nearest_pictures_2x(x: Tensor) -> Tensor:
    """x (frames, H, W) -> (frames, 2 H, 2 W)."""
    return _doubling("nearest_pictures_2x", 1, 2)(x)


def linear_pictures_2x(x: Tensor) -> Tensor:
    """x (frames, H, W) -> (frames, 2 H, 2 W)."""
    return _doubling("linear_pictures_2x", 1, 2)(x)


# Processes of one run


def check_ranks_agree() -> None:
    """Compares what the processes of a run compute with; collective, after `ms.communication.init`, on a CPU.

    Each process builds and loads the kernels itself. If that fails on some, these would use stock operators, whose
    results differ in the last digits, and the copies of the model would drift apart.

    Raises:
        UserError: on every rank, if not all have the same kernels or all have none.
    """
    found = library()
    digits = [0] * 17 if found is None else [1 + has_products(), *(int(digit, 16) for digit in found.key)]
    rows = ops.AllGather()(Tensor([digits], ms.float32)).asnumpy()
    others = [rank for rank, row in enumerate(rows) if (row != rows[0]).any()]
    if not others:
        return
    without = [rank for rank, row in enumerate(rows) if not row[0]]
    if without:
        raise UserError(
            f"rank {', '.join(map(str, without))} of {len(rows)} has no fused CPU kernels and would compute "
            f"differently; its log, worker_{without[0]}.log, says why; mend that, or set {SWITCH}=0 for all"
        )
    raise UserError(
        f"rank {', '.join(map(str, others))} has other CPU kernels than rank 0 (another CPU, compiler or "
        f"version of the program) and would compute differently; set {MARCH}=x86-64-v3 for all if only CPUs "
        f"differ, or {SWITCH}=0 for all"
    )
