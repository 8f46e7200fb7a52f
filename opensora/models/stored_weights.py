"""Loads weights into memory: in the dtype that a model computes in, or stored in fewer bits and widened when used."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore.common.np_dtype import bfloat16

from opensora.checkpoint.element_types import BITS, FLOATS, is_finite, is_finite_chunk
from opensora.checkpoint.lazy_tensor import ConvertedTensor, FileTensor, LazyTensor, ScaledTensor, summarize
from opensora.checkpoint.quantized import BLOCK_TYPES, may_be_q8_0
from opensora.device import supported_precisions
from opensora.models.common.layers import WeightLayer
from opensora.ops.backend import device_target
from opensora.ops.linear import GROUP
from opensora.utils.logs import logger

TYPES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16", "q8_0": "Q8_0"}  # of files, by the names that users give
STORED = {ms.float32: "F32", ms.bfloat16: "BF16", ms.float16: "F16", ms.int8: "Q8_0"}
DTYPES = {stored: dtype for dtype, stored in STORED.items()}
BYTES = {"F32": 4, "BF16": 2, "F16": 2, "Q8_0": 1 + 2 / GROUP}  # of an element


class HeldWeight(NamedTuple):
    """A parameter's numbers in memory; `scale` belongs to int8 (`opensora.ops.linear.stored_linear`)."""

    values: np.ndarray
    dtype: Any
    scale: Optional[np.ndarray] = None

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.scale is None else self.scale.nbytes)


class WeightLoader:
    """Reads tensors of a file in the format that they are held in, and sets the parameters of a model to them.

    Args:
        model: the model.
        dtype: the dtype it computes in.
        float32: names of the parameters that stay float32 whatever `dtype` is.
        weights: one of `opensora.config.memory.WEIGHTS` for the weights of linear layers and convolutions. They cannot
            be trained then, because they may be maps of the file. None: all weights have the dtype `dtype`.
    """

    def __init__(self, model: nn.Cell, dtype, float32: set[str], weights: Optional[str] = None):
        self.parameters: dict[str, Parameter] = dict(model.parameters_and_names())
        self.dtype, self.float32, self.weights = dtype, float32, weights
        self.has_bfloat16 = "bf16" in supported_precisions(device_target())
        self.layers: dict[str, WeightLayer] = {}
        for cell_name, cell in model.cells_and_names():
            name = f"{cell_name}.weight"
            if isinstance(cell, WeightLayer) and name not in float32:
                self.layers[name] = cell
        self.not_finite: dict[str, None] = {}  # names, in order
        self.integers: dict[str, str] = {}  # types by name
        self.warned: set[str] = set()

    def load(self, name: str, tensor: LazyTensor, may_map: bool) -> None:
        """Reads a tensor and sets the parameter `name` to it."""
        self.set(name, self.read(name, tensor, may_map))

    def read(self, name: str, tensor: LazyTensor, may_map: bool = False) -> HeldWeight:
        """Reads a tensor for the parameter `name`; with `may_map` the result may be a map of the file. Thread-safe."""
        if isinstance(tensor, FileTensor) and tensor.dtype not in FLOATS:
            self.integers[name] = tensor.dtype
        kind = self.kind(name, tensor)
        if kind == "Q8_0":
            values, scale = tensor.q8_0()
            self._note_finite(name, is_finite(scale))
            return HeldWeight(values, ms.int8, scale)
        source = tensor if tensor.dtype == kind else ConvertedTensor(tensor, kind, name)
        mapped = source.mapped() if may_map else None
        values = source.elements() if mapped is None else mapped
        self._note_finite(name, is_finite_chunk(np.ascontiguousarray(values).reshape(-1), kind))
        return HeldWeight(values.view(bfloat16) if kind == "BF16" else values, DTYPES[kind])

    def set(self, name: str, held: HeldWeight) -> None:
        """Sets the parameter `name`, and tells its layer how the weight is stored."""
        parameter, layer = self.parameters[name], self.layers.get(name)
        tensor = Tensor if self.weights is None else Tensor.from_numpy  # the latter shares the array's memory
        if parameter.has_init:
            self.release(name)
        # `set_data` would convert the numbers to the parameter's dtype, and `set_dtype` the old ones first.
        # np.ascontiguousarray gives scalars an axis.
        parameter.assign_value(tensor(np.ascontiguousarray(held.values).reshape(held.values.shape)))
        parameter.has_address = False  # of opensora.ops.cpu.launch
        if layer is not None:
            layer.compute_dtype = None if held.dtype == self.dtype else self.dtype
            layer.scale = None if held.scale is None else tensor(held.scale)

    def release(self, name: str) -> None:
        """Frees the memory of the parameter `name`; it becomes a broadcast view of one zero."""
        parameter, layer = self.parameters[name], self.layers.get(name)
        parameter.set_data(Tensor(0, ms.float32).astype(parameter.dtype).broadcast_to(parameter.shape))
        if layer is not None:
            layer.scale = None

    def kind(self, name: str, tensor: LazyTensor) -> str:
        """The type, F32, F16, BF16 or Q8_0, that the parameter `name` is held in.

        It is never wider than the dtype that the model computes in, and BF16 only on a device that has it. Types that
        no layer computes with (float8, 4 to 6 bits) become BF16, which is exact for float8 without scales.
        """
        layer = self.layers.get(name)
        own = STORED[ms.float32 if name in self.float32 else self.dtype]
        if layer is None or self.weights is None:
            return own
        stored = tensor.dtype
        if isinstance(tensor, ScaledTensor):
            stored = "Q8_0" if tensor.is_q8_0 else "BF16"
        elif stored in BLOCK_TYPES and stored != "Q8_0" or stored in BITS:
            stored = "BF16"
        wanted = TYPES.get(self.weights, stored)
        if wanted == "Q8_0" and not (layer.may_be_int8 and (stored == "Q8_0" or may_be_q8_0(name, tensor.shape))):
            wanted = "BF16" if stored == "Q8_0" else stored
        is_held = wanted in BYTES and BYTES[wanted] < BYTES[own] and (wanted != "BF16" or self.has_bfloat16)
        return wanted if is_held else own

    def warn(self, source: Union[str, Path]) -> None:
        """Warns of NaN, infinity and integer types in the tensors that were read, once for each tensor."""
        not_finite = [name for name in self.not_finite if name not in self.warned]
        integers = [f"{name}: {kind}" for name, kind in self.integers.items() if name not in self.warned]
        if not_finite:
            note = summarize("tensors hold NaN or infinity", not_finite)
            logger.warning(f"{source}: {note}: the model's output will be NaN")
        if integers:
            note = summarize("tensors have an integer type, but the model's type is float", integers)
            logger.warning(f"{source}: {note}: they are loaded without the scale that quantized weights need")
        self.warned.update(self.not_finite, self.integers)

    def _note_finite(self, name: str, is_finite: bool) -> None:
        if not is_finite:
            self.not_finite[name] = None
