"""Compilation of small transformers for the denoising loop.

In PyNative mode every operator is launched by Python. A block has about `OPERATORS` of them, and launching one takes 20
microseconds or more. That hides behind the computation of a large model, but takes most of the time of a small one,
which therefore runs several times faster as a graph. Compiling takes up to half a second for each block, once for each
shape, and memory that a large model needs for other things. The results are the same.
"""

from __future__ import annotations

import math
import time
from typing import Any, Callable

import mindspore as ms
from mindspore import Tensor, nn

from opensora.models.common.layers import WeightLayer
from opensora.ops.backend import on_cpu
from opensora.parallel.sequence import UlyssesSequenceParallel
from opensora.utils.logs import logger

OPERATORS = 25  # of a block
PATCH = 4  # latents of a token
SMALL = 2e7  # floating-point operations of an operator that a CPU computes in about the time of its launch
LEAST_CALLS = 10  # compiling takes the time of ten to a hundred and fifty calls, depending on the machine


def pays(transformer: Any, latents: Tensor, rows: int, calls: int) -> bool:
    """Whether to compile the transformer for `calls` calls with `rows` texts and latents (B, C, T, H, W)."""
    if calls < LEAST_CALLS or not can_compile(transformer):
        return False
    blocks = transformer.ordered_blocks()
    weights = sum(parameter.size for block in blocks for parameter in block.get_parameters())
    tokens = math.prod(latents.shape[2:]) / PATCH
    return 2 * weights * tokens * rows <= SMALL * OPERATORS * len(blocks)


def can_compile(transformer: Any) -> bool:
    """Whether it is loaded, of one process, in PyNative mode on a CPU, and does not compute in bfloat16."""
    if not isinstance(transformer, nn.Cell) or not on_cpu() or ms.get_context("mode") != ms.PYNATIVE_MODE:
        return False
    if transformer.is_streamed:
        return False
    cells = [cell for _, cell in transformer.cells_and_names()]
    if any(isinstance(cell, UlyssesSequenceParallel) for cell in cells):
        return False
    return all(cell.dtype() in (ms.float32, ms.float16) for cell in cells if isinstance(cell, WeightLayer))


class Compiled:
    """A Cell whose `construct` is compiled at the first call with inputs of new shapes."""

    def __init__(self, cell: nn.Cell, name: str):
        self._call: Callable = ms.jit(cell.construct)
        self._name = name
        self._shapes: set = set()

    def __call__(self, *inputs: Any) -> Any:
        shapes = shapes_of(inputs)
        if shapes in self._shapes:
            return self._call(*inputs)
        logger.info(f"compiling {self._name} for inputs of {'x'.join(map(str, inputs[0].shape))}")
        start = time.perf_counter()
        result = self._call(*inputs)
        (result if isinstance(result, Tensor) else result[-1]).asnumpy()  # waits for the end of the computation
        self._shapes.add(shapes)
        logger.info(f"compiled in {time.perf_counter() - start:.1f} s")
        return result


def compiled(transformer: Any) -> Compiled:
    """The transformer compiled, once for all its runs. MindSpore keeps it with its graphs until the process ends."""
    graphs = transformer.compiled_graphs
    if "whole" not in graphs:
        graphs["whole"] = Compiled(Whole(transformer), "the transformer")
    return graphs["whole"]


class Whole(nn.Cell):
    """The transformer in a Cell of its own, for which MindSpore has not compiled a graph yet."""

    def __init__(self, transformer: Any):
        super().__init__(auto_prefix=False)  # the transformer's parameters keep their names
        self.transformer = transformer

    def construct(self, *inputs: Any) -> Tensor:
        return self.transformer(*inputs)


def shapes_of(inputs: Any) -> Any:
    """The shapes of all tensors in nested tuples."""
    if isinstance(inputs, tuple):
        return tuple(shapes_of(item) for item in inputs)
    return tuple(inputs.shape) if isinstance(inputs, Tensor) else None
