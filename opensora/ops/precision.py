"""16-bit tensors on a CPU.

MindSpore's CPU has few operators for bfloat16, and the kernels of this project are float32. There a primitive converts
its 16-bit inputs to float32, computes, and rounds the result once: as the matrix units of Ascend do, which multiply
16-bit numbers and add up in float32.
"""

from __future__ import annotations

from typing import Any, Callable

import mindspore as ms
from mindspore import Tensor, ops

from opensora.ops.backend import on_cpu
from opensora.ops.cpu.custom_op import available


@ops.constexpr
def computes_in_float32(dtype) -> bool:
    """Whether primitives compute tensors of `dtype` in float32 and round the result to `dtype`.

    On a CPU without the kernels float16 is computed by MindSpore's own operators instead.
    """
    if dtype == ms.bfloat16:
        return on_cpu()
    return dtype == ms.float16 and available(ms.float32)


def float32_on_cpu(primitive: Callable) -> Callable:
    """Decorates a primitive whose first argument is a tensor x and whose results have the dtype of x."""

    def call(x, *args, **kwargs):
        if x.dtype == ms.float32 or not computes_in_float32(x.dtype):
            return primitive(x, *args, **kwargs)
        y = primitive(x.astype(ms.float32), *[widened(value) for value in args], **kwargs)
        if isinstance(y, tuple):
            return tuple([part.astype(x.dtype) for part in y])
        return y.astype(x.dtype)

    # Not functools.wraps, because graph mode would compile the function in `__wrapped__` instead of this one.
    call.__name__, call.__doc__ = primitive.__name__, primitive.__doc__
    return call


def cast(x: Tensor, dtype) -> Tensor:
    """x in `dtype`; x itself if it has that dtype, because the operator takes time even then."""
    return x if x.dtype == dtype else x.astype(dtype)


def widened(value: Any) -> Any:
    """A 16-bit tensor as float32; anything else unchanged."""
    if isinstance(value, Tensor) and computes_in_float32(value.dtype):
        return value.astype(ms.float32)
    return value
