"""Numpy functions as differentiable Cells."""

from __future__ import annotations

from typing import Callable

import numpy as np
from mindspore import Tensor, nn

Forward = Callable[..., np.ndarray]
Backward = Callable[..., tuple]


def array(tensor: Tensor) -> np.ndarray:
    """float64; numpy has no bfloat16."""
    return tensor.float().asnumpy().astype(np.float64)


class NumpyOperator(nn.Cell):
    """An operator on tensors of the same or different types, computed in float64.

    Args:
        forward: arrays of the inputs -> array of the output, which gets the type of the first input.
        backward: (arrays of the inputs, array of the output's gradient) -> arrays of the inputs' gradients, each of
            which gets its input's type.
    """

    def __init__(self, forward: Forward, backward: Backward):
        super().__init__(auto_prefix=False)
        self.functions = forward, backward

    def construct(self, *inputs: Tensor) -> Tensor:
        return tensor_of(self.functions[0](*map(array, inputs)), inputs[0])

    def bprop(self, *arguments) -> tuple:
        inputs, dout = arguments[:-2], arguments[-1]  # between them the output
        gradients = self.functions[1](*map(array, inputs), array(dout))
        return tuple(tensor_of(gradient, x) for gradient, x in zip(gradients, inputs))


def tensor_of(values: np.ndarray, like: Tensor) -> Tensor:
    """With the type of `like`, rounded as an NPU's float32 accumulator is."""
    return Tensor(np.ascontiguousarray(values, np.float32)).astype(like.dtype)
