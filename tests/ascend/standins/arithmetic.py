"""Implicit type conversion: every binary operator of Tensor and `ops` checks the types of its operands."""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from typing import Callable

from mindspore import Tensor, ops

from standins.machine import Machine
from standins.rules import SIXTEEN_BITS, rule

METHODS = (
    "__add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __pow__ __iadd__ __isub__ __imul__ "
    "__itruediv__ __matmul__ __lt__ __le__ __gt__ __ge__ add add_ sub sub_ mul mul_ div div_ pow maximum minimum matmul"
).split()
FUNCTIONS = (
    "add sub mul div pow maximum minimum less less_equal greater greater_equal lerp addcmul addcdiv matmul bmm "
    "fmod atan2 assign assign_add assign_sub bias_add"
).split()
SELECTIONS = "where select masked_fill".split()  # with a condition, whose type differs

CONVERSION = rule(
    "arithmetic of Tensor and ops",
    "a bfloat16 operand meets no tensor of another dtype: there is no implicit conversion (float16 is treated alike)",
    "MindSpore's page on bfloat16 support",
)


def install(patch, machine: Machine) -> None:
    for name in METHODS:
        patch.setattr(Tensor, name, _checked(getattr(Tensor, name), name))
    for name in FUNCTIONS:
        patch.setattr(ops, name, _checked(getattr(ops, name), name))
    for name in SELECTIONS:
        patch.setattr(ops, name, _checked(getattr(ops, name), name, is_selection=True))
    for name in ("cat", "stack"):
        patch.setattr(ops, name, _checked(getattr(ops, name), name))


def _checked(operator: Callable, name: str, is_selection: bool = False) -> Callable:
    @wraps(operator)
    def call(*arguments, **options):
        if is_selection:  # (condition, x, y), but (x, mask, value)
            condition = 1 if name == "masked_fill" else 0
            check([x for i, x in enumerate(arguments) if i != condition], name)
        else:
            check(arguments, name)
        return operator(*arguments, **options)

    return call


def check(operands: Sequence, name: str) -> None:
    """Scalars and other values that are no tensors take the type of the tensor."""
    flat = [x for operand in operands for x in (operand if isinstance(operand, (tuple, list)) else (operand,))]
    dtypes = [x.dtype for x in flat if isinstance(x, Tensor)]
    mixed = any(dtype in SIXTEEN_BITS for dtype in dtypes) and any(dtype != dtypes[0] for dtype in dtypes)
    CONVERSION.require(not mixed, name, *dtypes)
