"""What the project asks of the device itself: its name, its chip, its precision settings, and compilation."""

from __future__ import annotations

from functools import wraps
from typing import Callable

import mindspore as ms
from mindspore import ops
from mindspore._c_expression import ms_ctx_param
from mindspore.common.api import _pynative_executor

from standins.machine import CHIPS, Machine
from standins.rules import Rule, rule

PREFIX, SOURCE = "op_precision", "docstring of mindspore.device_context.ascend.op_precision"
MODES = (
    "force_fp16 allow_fp32_to_fp16 allow_mix_precision must_keep_origin_dtype force_fp32 allow_fp32_to_bf16 "
    "allow_mix_precision_fp16 allow_mix_precision_bf16"
).split()
VALUES = {"precision_mode": MODES, "conv_allow_hf32": [True, False], "matmul_allow_hf32": [True, False]}
KNOWN = {
    name: rule(f"{PREFIX}.{name}", f"one of {', '.join(map(str, values))}", f"{SOURCE}.{name}, Args")
    for name, values in VALUES.items()
}
ONCE = {name: rule(f"{PREFIX}.{name}", "is set once", f"source of {PREFIX}.{name}, RuntimeError") for name in VALUES}


def install(patch, machine: Machine) -> None:
    assert machine.chip in CHIPS, machine.chip
    get_context = ms.get_context
    patch.setattr(ms, "get_context", lambda name: "Ascend" if name == "device_target" else get_context(name))
    patch.setattr(ms.context, "MSContext", _Context(ms.context.MSContext, machine.chip))
    patch.setattr(ms.hal, "is_available", lambda target: target in ("Ascend", "CPU"))
    patch.setattr(ms, "set_device", lambda *arguments: None)
    patch.setattr(ms, "jit", _interpreted)
    from mindspore.device_context.ascend import op_precision

    for name in VALUES:
        patch.setattr(op_precision, name, _recorder(machine, name, KNOWN[name], ONCE[name]))


class _Context:
    """MindSpore's context, with the names of the device and of the chip."""

    def __init__(self, stock, chip: str):
        self.stock, self.chip = stock, chip

    def get_instance(self) -> _Context:
        return self

    def get_ascend_soc_version(self) -> str:
        return self.chip

    def get_param(self, key):
        return "Ascend" if key == ms_ctx_param.device_target else self.stock.get_instance().get_param(key)

    def __getattr__(self, name: str):
        return getattr(self.stock.get_instance(), name)


def _interpreted(function: Callable, **options) -> Callable:
    """A function in PyNative mode, because numpy bodies cannot be compiled.

    Like a compiled function, it may differentiate inside a Cell with a `bprop`, whose `construct` records nothing, and
    its results have no history.
    """

    @wraps(function)
    def call(*arguments):
        before = _pynative_executor.enable_grad()
        _pynative_executor.set_enable_grad(True)
        try:
            return _without_history(function(*arguments))
        finally:
            _pynative_executor.set_enable_grad(before)

    return call


def _without_history(result):
    return tuple(map(_without_history, result)) if isinstance(result, tuple) else ops.stop_gradient(result)


def _recorder(machine: Machine, name: str, known: Rule, once: Rule) -> Callable:
    def configure(value) -> None:
        known.require(value in VALUES[name], value)
        once.require(machine.precision.get(name, value) == value, machine.precision.get(name), value)
        machine.precision[name] = value

    return configure
