"""`ops.layer_norm`, `ops.rms_norm` and `ops.group_norm`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional, Union

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from standins.gradients import NumpyOperator
from standins.machine import FIRST_GENERATION, Machine
from standins.rules import FLOATS, rule

LAYER, RMS, GROUP = "ops.layer_norm", "ops.rms_norm", "ops.group_norm"
LAYER_SOURCE, RMS_SOURCE, GROUP_SOURCE = (f"docstring of {name}" for name in (LAYER, RMS, GROUP))

LAYER_DTYPE = rule(LAYER, "input is float16, bfloat16 or float32", "MindSpore's table of bfloat16 operators")
LAYER_SAME = rule(LAYER, "weight and bias have input's dtype", f"{LAYER_SOURCE}, weight and bias")
LAYER_SHAPE = rule(LAYER, "normalized_shape equals input's last axes", f"{LAYER_SOURCE}, normalized_shape")
LAYER_WEIGHT = rule(LAYER, "weight and bias have the shape normalized_shape", f"{LAYER_SOURCE}, weight and bias")
LAYER_EPS = rule(LAYER, "eps is a float", f"{LAYER_SOURCE}, Raises")

RMS_CHIP = rule(RMS, "Atlas A2 or A3", f"{RMS_SOURCE}, warning (A2; the A3 has its operators)")
RMS_DTYPE = rule(RMS, "x is float16, bfloat16 or float32", f"{RMS_SOURCE}, x")
RMS_SAME = rule(RMS, "gamma has x's dtype", f"{RMS_SOURCE}, Raises")
RMS_RANK = rule(RMS, "gamma's rank is at most x's, and its shape that of x's last axes", f"{RMS_SOURCE}, Raises")
RMS_EPSILON = rule(RMS, "epsilon is a float in (0, 1]", f"{RMS_SOURCE}, epsilon")

GROUP_DTYPE = rule(GROUP, "input is float16, bfloat16 or float32", "aclnnGroupNorm")
GROUP_SAME = rule(GROUP, "weight and bias have input's dtype", f"{GROUP_SOURCE}, weight and bias")
GROUP_RANK = rule(GROUP, "input is (N, C, *) and weight and bias are (C,)", f"{GROUP_SOURCE}, input and weight")
GROUP_COUNT = rule(GROUP, "num_groups is an int, 1 or more, that divides C", f"{GROUP_SOURCE}, Raises")
GROUP_EPS = rule(GROUP, "eps is a float", f"{GROUP_SOURCE}, Raises")


def install(patch, machine: Machine) -> None:
    def layer_norm(
        input: Tensor,
        normalized_shape: Union[int, Sequence[int]],
        weight: Optional[Tensor] = None,
        bias: Optional[Tensor] = None,
        eps: float = 1e-5,
    ) -> Tensor:
        machine.calls.add(LAYER)
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        LAYER_DTYPE.require(input.dtype in FLOATS, input.dtype)
        LAYER_SHAPE.require(shape == input.shape[len(input.shape) - len(shape) :], shape, input.shape)
        LAYER_EPS.require(isinstance(eps, float), eps)
        weight, bias = _defaults(weight, bias, shape, input.dtype)
        LAYER_SAME.require(weight.dtype == bias.dtype == input.dtype, input.dtype, weight.dtype, bias.dtype)
        LAYER_WEIGHT.require(weight.shape == bias.shape == shape, shape, weight.shape, bias.shape)
        return _normalization(tuple(range(-len(shape), 0)), eps)(input, weight, bias)

    def rms_norm(x: Tensor, gamma: Tensor, epsilon: float = 1e-6) -> tuple[Tensor, Tensor]:
        machine.calls.add(RMS)
        RMS_CHIP.require(machine.chip != FIRST_GENERATION, machine.chip)
        RMS_DTYPE.require(x.dtype in FLOATS, x.dtype)
        RMS_SAME.require(gamma.dtype == x.dtype, x.dtype, gamma.dtype)
        axes = tuple(range(-gamma.ndim, 0))
        RMS_RANK.require(gamma.ndim <= x.ndim and gamma.shape == x.shape[x.ndim - gamma.ndim :], x.shape, gamma.shape)
        RMS_EPSILON.require(isinstance(epsilon, float) and 0 < epsilon <= 1, epsilon)
        y = _rms_normalization(axes, epsilon)(x, gamma)
        squares = np.square(x.float().asnumpy()).mean(axes, keepdims=True)
        return y, Tensor(1 / np.sqrt(squares + epsilon), ms.float32)

    def group_norm(
        input: Tensor, num_groups: int, weight: Optional[Tensor] = None, bias: Optional[Tensor] = None, eps=1e-5
    ) -> Tensor:
        machine.calls.add(GROUP)
        GROUP_DTYPE.require(input.dtype in FLOATS, input.dtype)
        GROUP_RANK.require(input.ndim >= 2, input.shape)
        n, c = input.shape[:2]
        GROUP_COUNT.require(isinstance(num_groups, int) and num_groups >= 1 and c % num_groups == 0, c, num_groups)
        GROUP_EPS.require(isinstance(eps, float), eps)
        weight, bias = _defaults(weight, bias, (c,), input.dtype)
        GROUP_SAME.require(weight.dtype == bias.dtype == input.dtype, input.dtype, weight.dtype, bias.dtype)
        GROUP_RANK.require(weight.shape == bias.shape == (c,), weight.shape, bias.shape)
        return _group_normalization(num_groups, eps)(input, weight, bias)

    for operator in (layer_norm, rms_norm, group_norm):
        patch.setattr(ops, operator.__name__, operator)


def _defaults(weight: Optional[Tensor], bias: Optional[Tensor], shape: tuple, dtype) -> tuple[Tensor, Tensor]:
    return (
        Tensor(np.ones(shape), dtype) if weight is None else weight,
        Tensor(np.zeros(shape), dtype) if bias is None else bias,
    )


def _standardize(x: np.ndarray, axes: tuple, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """x with zero mean and unit variance over `axes`, and the reciprocal of the standard deviation."""
    reciprocal = 1 / np.sqrt(x.var(axes, keepdims=True) + eps)
    return (x - x.mean(axes, keepdims=True)) * reciprocal, reciprocal


def _standardize_gradient(y: np.ndarray, reciprocal: np.ndarray, dy: np.ndarray, axes: tuple) -> np.ndarray:
    return reciprocal * (dy - dy.mean(axes, keepdims=True) - y * (dy * y).mean(axes, keepdims=True))


def _leading_sum(x: np.ndarray, kept: int) -> np.ndarray:
    """The sum over all but the last `kept` axes."""
    return x.sum(tuple(range(x.ndim - kept)))


def _normalization(axes: tuple, eps: float) -> NumpyOperator:
    def forward(x, weight, bias):
        return _standardize(x, axes, eps)[0] * weight + bias

    def backward(x, weight, bias, dy):
        y, reciprocal = _standardize(x, axes, eps)
        d_x = _standardize_gradient(y, reciprocal, dy * weight, axes)
        return d_x, _leading_sum(dy * y, len(axes)), _leading_sum(dy, len(axes))

    return NumpyOperator(forward, backward)


def _rms_normalization(axes: tuple, eps: float) -> NumpyOperator:
    def forward(x, gamma):
        return x / np.sqrt(np.square(x).mean(axes, keepdims=True) + eps) * gamma

    def backward(x, gamma, dy):
        reciprocal = 1 / np.sqrt(np.square(x).mean(axes, keepdims=True) + eps)
        y, d_y = x * reciprocal, dy * gamma
        return reciprocal * (d_y - y * (d_y * y).mean(axes, keepdims=True)), _leading_sum(dy * y, len(axes))

    return NumpyOperator(forward, backward)


def _group_normalization(groups: int, eps: float) -> NumpyOperator:
    def grouped(x):
        return x.reshape(x.shape[0], groups, -1)

    def channels(vector, x):
        return vector.reshape(1, -1, *(1,) * (x.ndim - 2))

    def forward(x, weight, bias):
        y = _standardize(grouped(x), (2,), eps)[0].reshape(x.shape)
        return y * channels(weight, x) + channels(bias, x)

    def backward(x, weight, bias, dy):
        y, reciprocal = _standardize(grouped(x), (2,), eps)
        d_x = _standardize_gradient(y, reciprocal, grouped(dy * channels(weight, x)), (2,)).reshape(x.shape)
        others = (0, *range(2, x.ndim))
        return d_x, (dy * y.reshape(x.shape)).sum(others), dy.sum(others)

    return NumpyOperator(forward, backward)
