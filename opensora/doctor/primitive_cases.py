"""A case of a primitive: its settings, inputs and reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple, Optional

import numpy as np


class Input(NamedTuple):
    """A normally distributed input, or a given one.

    Attributes:
        single: it is float32 whatever the dtype of the case is, as statistics and modulation are.
        differentiable: whether a gradient flows to it.
        value: the input; None: normally distributed, with this scale.
    """

    shape: Sequence[int]
    single: bool = False
    differentiable: bool = True
    value: Optional[np.ndarray] = None
    scale: float = 1.0


@dataclass(frozen=True)
class Case:
    """A primitive with settings and inputs.

    Attributes:
        name: module.function, and the variant.
        run: inputs as tensors -> a tensor, or a sequence of them.
        reference: inputs as float64 arrays -> an array, or a sequence of them.
        fused: the operator of `backend.FUSED_OPERATORS` that Ascend may use.
        backward: whether it has a gradient.
        keeps_dtype: whether the output has the dtype of the case; otherwise it is float32.
        single: the primitive exists in float32 only.
    """

    name: str
    run: Callable[..., Any]
    reference: Callable[..., Any]
    inputs: Sequence[Input]
    fused: str = ""
    backward: bool = True
    keeps_dtype: bool = True
    single: bool = False


def given(*shape: int, scale: float = 1.0) -> Input:
    return Input(shape, scale=scale)


def single(*shape: int, scale: float = 1.0) -> Input:
    return Input(shape, single=True, scale=scale)


def fixed(value: np.ndarray) -> Input:
    return Input(value.shape, single=True, differentiable=False, value=value.astype(np.float32))
