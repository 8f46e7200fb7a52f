"""Kernels of `opensora.ops.updates`: optimizer.cc. PyNative mode; all but `flatten` update tensors in place."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from mindspore import Tensor

from opensora.ops.cpu.custom_op import custom_op


@cache
def _in_place(name: str):
    """Its output is a dummy, because MindSpore has no operators without outputs."""
    return custom_op(name, lambda *shapes: [1])


@cache
def _flatten(size: int):
    return custom_op("flatten", lambda *shapes: [size])


def flatten(tensors: Sequence[Tensor], size: int) -> Tensor:
    """Concatenates the elements of the tensors and pads them with zeros to (size,)."""
    return _flatten(size)(*tensors)


def unflatten(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    """Overwrites the tensors with consecutive elements of `flat`, all of one dtype of 32 or 16 bits."""
    _in_place("unflatten" if flat.itemsize == 4 else "unflatten_16bit")(flat, *tensors)


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
    """Arguments as in `opensora.ops.updates.adamw`."""
    values = (
        factor,
        learning_rate,
        learning_rate * weight_decay,
        beta1,
        beta2,
        1 / (1 - beta1**step),
        1 / (1 - beta2**step),
        epsilon,
    )
    _in_place("adamw")(weights, exp_avg, exp_avg_sq, gradient, Tensor(np.array(values, np.float32)))


def lerp(target: Tensor, source: Tensor, weight: float) -> None:
    """target += (source - target) * weight"""
    _in_place("lerp")(target, source, Tensor(np.array([weight], np.float32)))
