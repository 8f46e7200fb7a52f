"""C++ kernels as MindSpore operators, in PyNative and in graph mode. Operators are made at their first use."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import count
from pathlib import Path
from typing import Callable, Optional, Union

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from opensora.errors import UserError
from opensora.ops.backend import on_cpu
from opensora.ops.cpu.build import library
from opensora.ops.cpu.launch import Kernel
from opensora.ops.cpu.runtime import tune_process

ONEDNN = Path(ms.__file__).parent / "lib" / "libdnnl.so.2"  # oneDNN 2.x, which MindSpore ships; kernels use its sgemm


@ops.constexpr
def available(dtype) -> bool:
    """Whether the kernels can be used for tensors of `dtype`: float32 on a CPU. A constant in graph mode."""
    if not on_cpu():
        return False
    tune_process()
    return dtype == ms.float32 and library() is not None


@ops.constexpr
def gemm_available(dtype) -> bool:
    """`available` for the kernels that need matrix products: attention, linear layers and convolutions."""
    return available(dtype) and has_sgemm()


@lru_cache(maxsize=1)
def has_sgemm() -> bool:
    """Whether oneDNN can be loaded and has the `sgemm` that the kernels were written for."""
    try:
        ctypes.CDLL(str(ONEDNN))
    except OSError:
        return False
    found = library()
    return found is not None and bool(found.functions.has_sgemm())


@ops.constexpr
def settings(*values: float) -> Tensor:
    """Scalars for a kernel, which takes float32 tensors only; a constant in graph mode."""
    return exact_tensor(values)


@cache
def exact_tensor(values: tuple) -> Tensor:
    """A float32 tensor of sizes, indices and other numbers.

    Raises:
        UserError: float32 cannot represent one of the integers.
    """
    array = np.array(values, np.float32)
    if any(isinstance(value, int) and int(number) != value for value, number in zip(values, array)):
        raise UserError(
            f"{values}: the CPU kernels receive sizes as float32, which is exact for integers up to 2^24 only; "
            "split the tensor, or set OPENSORA_CPU_KERNELS=0"
        )
    return Tensor(array)


@cache
def zeros(*shape: int) -> Tensor:
    """A float32 input without effect, such as a bias of zero; made once."""
    return Tensor(np.zeros(shape, np.float32))


_serial_numbers = count(1)


def custom_op(
    name: str, *outputs: Union[int, Callable], bprop: Optional[Callable] = None, dtypes: Optional[Sequence] = None
) -> ops.Custom:
    """The operator for the kernel `name`.

    Args:
        name: Exported function of the library.
        outputs: Shape of each output: the index of an input with the same shape, or a function of all input shapes.
        bprop: Gradient, as `ops.Custom` takes it: (*inputs, output, output gradient) -> input gradients.
        dtypes: Dtype of each input; None: one dtype for all. Outputs have that of the first input.
    """

    def output_shapes(*shapes):
        return [shapes[output] if isinstance(output, int) else output(*shapes) for output in outputs]

    def check_dtypes(*given):
        wanted = list(dtypes) if dtypes else [given[0]] * len(given)
        if list(given) != wanted:  # kernels read the bytes of whatever they are given
            need = ", ".join(map(str, wanted)) if dtypes else "one dtype"
            raise TypeError(f"{name}: inputs of {need} are required, not {', '.join(map(str, given))}")

    def infer_shape(*shapes):
        results = output_shapes(*shapes)
        return results[0] if len(results) == 1 else tuple(results)

    def infer_dtype(*given):
        check_dtypes(*[kind.element_type() for kind in given])
        return given[0] if len(outputs) == 1 else (given[0],) * len(outputs)

    found = library()
    assert found is not None, "callers check `available` first"
    arguments = (f"{found.path}:{name}", infer_shape, infer_dtype, "aot", bprop)
    # Not called directly: operators on stored weights, which come and go and are large, and gradients, for which
    # MindSpore makes other tensors of the same weights. A direct call would copy them.
    if dtypes or bprop is None:
        operator = ops.Custom(*arguments)
    else:
        operator = Kernel(getattr(found.functions, name), output_shapes, check_dtypes, *arguments)
    # MindSpore caches inferred shapes by an operator's name and attributes. A unique attribute prevents wrong cache
    # hits.
    operator.add_prim_attr("serial_number", next(_serial_numbers))
    return operator
