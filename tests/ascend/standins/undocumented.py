"""Operators whose documentation for Ascend excludes some types, ranks or values; the stock ones compute."""

from __future__ import annotations

from collections.abc import Sequence
from functools import wraps
from typing import Callable

import mindspore as ms
from mindspore import Tensor, nn, ops

from opensora.models import VideoAutoencoderKL, WFVAEModel
from standins.machine import FIRST_GENERATION, Machine
from standins.rules import SIXTEEN_BITS, Rule, rule

NO_BFLOAT16 = {
    name: rule(f"ops.{name}", "float16 or float32: bfloat16 is not documented", source)
    for name, source in {
        "silu": "docstring of ops.silu, input",
        "sigmoid": "docstring of ops.sigmoid, input",
        "rsqrt": "absent from MindSpore's table of bfloat16 operators",
        "Conv2D": "absent from MindSpore's table of bfloat16 operators",
        "Conv3D": "docstring of ops.Conv3D, x and weight",
    }.items()
}
FIRST_BFLOAT16 = rule("Tensor.astype", "no bfloat16 on a 910A", "HCCL and vllm-ascend: bfloat16 on A2 and A3 only")
POOL_DTYPE = rule("ops.max_pool2d", "x is float16", "docstring of ops.MaxPoolWithArgmaxV2, x")
PAD_RANK = rule("ops.pad", "rank of at most 5", "docstring of ops.pad, input_x and Raises")
PAD_SIGN = rule("ops.pad", "no negative padding", "docstring of ops.pad, padding and Raises")
MATMUL_RANK = rule("ops.matmul", "ranks from 1 to 6", "docstring of ops.matmul, note")
CONVOLUTION_GROUPS = rule("ops.Conv2D", "one group, unless depthwise", "docstring of ops.Conv2D, note")


def install(patch, machine: Machine) -> None:
    def typed(operator: Callable, demand: Rule) -> Callable:
        @wraps(operator)
        def call(*arguments, **options):
            machine.calls.add(demand.operator)
            is_bfloat16 = machine.as_bfloat16 and not machine.autoencoders_running
            types = SIXTEEN_BITS if is_bfloat16 else (ms.bfloat16,)
            found = [x.dtype for x in arguments if isinstance(x, Tensor)]
            demand.require(not any(dtype in types for dtype in found), *found)
            return operator(*arguments, **options)

        return call

    for name in ("silu", "sigmoid", "rsqrt"):
        checked = typed(getattr(ops, name), NO_BFLOAT16[name])
        patch.setattr(ops, name, checked)
        patch.setattr(ops.function, name, checked)  # nn.SiLU calls this one
    for name in ("sigmoid", "rsqrt"):
        patch.setattr(Tensor, name, typed(getattr(Tensor, name), NO_BFLOAT16[name]))
    patch.setattr(ops, "Conv2D", _convolution(ops.Conv2D, lambda primitive: typed(primitive, NO_BFLOAT16["Conv2D"])))
    patch.setattr(ops, "Conv3D", _convolution(ops.Conv3D, lambda primitive: typed(primitive, NO_BFLOAT16["Conv3D"])))
    patch.setattr(nn.Conv2d, "construct", typed(nn.Conv2d.construct, NO_BFLOAT16["Conv2D"]))
    patch.setattr(ops, "max_pool2d", max_pool2d(ops.max_pool2d))
    patch.setattr(ops, "pad", pad(ops.pad))
    patch.setattr(ops, "matmul", matmul(ops.matmul))
    for autoencoder in (WFVAEModel, VideoAutoencoderKL):
        for name in ("encode", "decode"):
            patch.setattr(autoencoder, name, in_float16(machine, getattr(autoencoder, name)))
    patch.setattr(WFVAEModel, "decode_chunks", chunks_in_float16(machine, WFVAEModel.decode_chunks))
    if machine.chip == FIRST_GENERATION:
        patch.setattr(Tensor, "astype", without_bfloat16(Tensor.astype))
        patch.setattr(Tensor, "set_dtype", without_bfloat16(Tensor.set_dtype))


def _convolution(primitive: Callable, checked: Callable) -> Callable:
    def make(*arguments, group: int = 1, **options) -> Callable:
        CONVOLUTION_GROUPS.require(group == 1 or group == arguments[0], group)
        return checked(primitive(*arguments, group=group, **options))

    return make


def max_pool2d(stock: Callable) -> Callable:
    def call(x: Tensor, *arguments, **options):
        POOL_DTYPE.require(x.dtype == ms.float16, x.dtype)
        return stock(x, *arguments, **options)

    return call


def pad(stock: Callable) -> Callable:
    def call(x: Tensor, padding: Sequence[int], *arguments, **options) -> Tensor:
        PAD_RANK.require(x.ndim <= 5, x.shape)
        PAD_SIGN.require(min(padding) >= 0, padding)
        return stock(x, padding, *arguments, **options)

    return call


def matmul(stock: Callable) -> Callable:
    def call(input: Tensor, other: Tensor) -> Tensor:
        MATMUL_RANK.require(all(1 <= x.ndim <= 6 for x in (input, other)), input.shape, other.shape)
        return stock(input, other)

    return call


def without_bfloat16(stock: Callable) -> Callable:
    def call(self: Tensor, dtype, *arguments, **options) -> Tensor:
        FIRST_BFLOAT16.require(ms.bfloat16 not in (dtype, self.dtype), dtype)
        return stock(self, dtype, *arguments, **options)

    return call


def in_float16(machine: Machine, method: Callable) -> Callable:
    """A method of an autoencoder, which runs in float16 where other models run in bfloat16."""

    @wraps(method)
    def call(*arguments, **options):
        with machine.running_an_autoencoder():
            return method(*arguments, **options)

    return call


def chunks_in_float16(machine: Machine, method: Callable) -> Callable:
    """`in_float16` for a generator."""

    @wraps(method)
    def iterate(*arguments, **options):
        chunks = method(*arguments, **options)
        while True:
            with machine.running_an_autoencoder():
                chunk = next(chunks, None)
            if chunk is None:
                return
            yield chunk

    return iterate
