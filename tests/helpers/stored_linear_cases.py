"""Random calls of the C++ kernels of linear layers whose weights are stored in 16 or 8 bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

import numpy as np
from kernel_calls import Call, Draw, doubles

GROUP = 32  # int8 weights with one scale


def bfloat16(values: np.ndarray) -> np.ndarray:
    """The bits of float32 values rounded toward zero."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def float32_of_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def widened(weight: np.ndarray, scale: Optional[np.ndarray] = None) -> np.ndarray:
    """Stored weights (n, k) as float64, computed in numpy."""
    if scale is not None:
        return weight * scale.astype(np.float64).repeat(GROUP, 1)
    return (float32_of_bfloat16(weight) if weight.dtype == np.uint16 else weight).astype(np.float64)


def stored_linear(draw: Draw) -> Iterator[Call]:
    rows, n = draw.choice(draw.size(), draw.size(90)), draw.choice(draw.size(), draw.size(130))
    yield from stored_linear_calls(draw, rows, draw.size(70), GROUP * draw.size(3), n)


def large_stored_linear(draw: Draw) -> Iterator[Call]:
    """Rows so wide that a thread widens its weights in several panels."""
    k = GROUP * draw.size(9000, 8800)
    yield from stored_linear_calls(draw, draw.size(3), k, k, draw.size(40, 33))


def stored_linear_calls(draw: Draw, rows: int, k: int, grouped_k: int, n: int) -> Iterator[Call]:
    """With rows of k weights, for int8 of `grouped_k`; small and large ones, down to the subnormals of float16."""
    magnitude = draw.choice(1e-7, 1e-3, 1, 100) / k**0.5
    weight, bias = draw.normal(n, k) * np.float32(magnitude), draw.normal(n)
    int8 = draw.random.randint(-128, 128, (n, grouped_k)).astype(np.int8)
    scale = (draw.normal(n, grouped_k // GROUP) * magnitude).astype(np.float16)
    for name, *stored in (
        ("linear_bfloat16", bfloat16(weight)),
        ("linear_float16", weight.astype(np.float16)),
        ("linear_int8", int8, scale),
    ):
        x = draw.normal(rows, stored[0].shape[1])
        (x64,) = doubles(x)
        y = x64 @ widened(*stored).T
        yield Call(name, [x, *stored], [y])
        yield Call(name, [x, *stored, bias], [y + bias])
        yield Call(name, [np.pad(x, ((0, 0), (0, GROUP))), *stored], None)
        yield Call(name, [x, *stored, np.append(bias, 0)], None)
    x = draw.normal(rows, grouped_k)
    yield Call("linear_int8", [x, int8, np.pad(scale, ((0, 1), (0, 0)))], None)
    yield Call("linear_int8", [x, int8, np.pad(scale, ((0, 0), (0, 1)))], None)
    yield Call("linear_int8", [x[:, :-1], int8[:, :-1], scale], None)
