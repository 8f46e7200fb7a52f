"""`ops.Adam`."""

from __future__ import annotations

import mindspore as ms
from mindspore import Parameter, Tensor, ops

from standins.machine import Machine
from standins.rules import rule

NAME, SOURCE = "ops.Adam", "docstring of ops.Adam"
PARAMETERS = rule(NAME, "var, m and v are Parameters", f"{SOURCE}, Raises")
DTYPE = rule(NAME, "var is float16 or float32", f"{SOURCE}, var")
SHAPES = rule(NAME, "m, v and gradient have var's shape", f"{SOURCE}, m, v and gradient")


def install(patch, machine: Machine) -> None:
    class Adam:
        def __init__(self, *arguments, **options):
            self.stock = stock(*arguments, **options)

        def __call__(self, var: Tensor, m: Tensor, v: Tensor, *numbers_and_gradient):
            gradient = numbers_and_gradient[-1]
            PARAMETERS.require(all(isinstance(x, Parameter) for x in (var, m, v)), type(var), type(m), type(v))
            DTYPE.require(var.dtype in (ms.float16, ms.float32), var.dtype)
            SHAPES.require(m.shape == v.shape == gradient.shape == var.shape, m.shape, v.shape, gradient.shape)
            return self.stock(var, m, v, *numbers_and_gradient)

    stock = ops.Adam
    patch.setattr(ops, NAME.removeprefix("ops."), Adam)
