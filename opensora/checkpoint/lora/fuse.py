"""Adds LoRAs to the weights of a model: W' = W + scale * factor * B A."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Union

import numpy as np

from opensora.checkpoint.element_types import FLOATS, encode
from opensora.checkpoint.files import WEIGHTS_NAME, config_path, find_weights, open_state
from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.checkpoint.lazy_tensor import LazyTensor, ScaledTensor
from opensora.checkpoint.lora.files import LowRank, linear_layers, read_lora
from opensora.config.lora import LoRASpec
from opensora.errors import UserError
from opensora.utils.files import atomic_write

PathLike = Union[str, Path]

FUSED_TYPES = ("F64", "F32", "F16", "BF16")


class Change(NamedTuple):
    """A LoRA's change of a layer, and what it is multiplied by."""

    layer: LowRank
    scale: float


class FusedTensor(LazyTensor):
    """A linear layer's weight plus changes of low rank, computed in float32 and rounded to the weight's type.

    Args:
        weight: (out, in), of one of `FUSED_TYPES`. float64 is computed in float64.
        changes: of its shape.
        name: of the weight, for errors.

    Reading it raises UserError for sums that float16 does not reach.
    """

    def __init__(self, weight: LazyTensor, changes: Sequence[Change], name: str = "the tensor"):
        self.weight, self.changes, self.name = weight, changes, name
        self.shape, self.dtype = weight.shape, weight.dtype

    def iter_bytes(self) -> Iterator:
        columns = self.shape[1]
        scaled = [(np.float32(scale * layer.factor) * layer.b, layer.a) for layer, scale in self.changes]
        start = 0
        for chunk in self.weight.iter_values():
            stop = start + chunk.size
            first, last = start // columns, -(-stop // columns)  # rows of which the chunk has at least a part
            total = chunk.astype(np.promote_types(chunk.dtype, np.float32))
            for b, a in scaled:
                rows = b[first:last] @ a
                total += rows.reshape(-1)[start - first * columns : stop - first * columns]
            stored = total if self.dtype == "F64" else encode(total, self.dtype, self.name)
            yield stored.view(np.uint8)
            start = stop


def fuse_loras(model_path: PathLike, loras: Sequence[LoRASpec], output: PathLike) -> int:
    """Writes config.json and the weights of a model plus LoRAs, one tensor at a time, in the types of its files.

    Args:
        model_path: file or folder of the weights, in any format of `checkpoint.files.open_state`.
        loras: files or folders, see `read_lora`.
        output: folder for the model.

    Returns:
        The number of layers that were changed. With scale 0 a LoRA changes none.

    Raises:
        FileNotFoundError: no weights, no config.json or no LoRA.
        UserError: a LoRA does not fit the model, the weights are quantized, or the output would be in the source.
        OSError: the disk is full (checked before writing, if the file system allows it) or not writable.
    """
    source = find_weights(model_path)
    config = config_path(source)
    output = _checked_output(output, source)
    state = open_state(source)
    _check_types(state, source)
    modules = linear_layers(state)
    changes: dict[str, list[Change]] = {}
    for spec in loras:
        for module, layer in read_lora(spec.path, modules).items():
            if spec.scale * layer.factor:
                changes.setdefault(f"{module}.weight", []).append(Change(layer, spec.scale))
    fused = {
        name: FusedTensor(tensor, changes[name], f"{output}: {name}") if name in changes else tensor
        for name, tensor in state.items()
    }
    write_safetensors(output / WEIGHTS_NAME, fused, progress=True, check_finite=True)
    with atomic_write(output / config.name) as temporary:
        shutil.copyfile(config, temporary)
    return len(changes)


def _checked_output(output: PathLike, source: Path) -> Path:
    """The path of the output. Raises UserError if it is a file, or in the folder of the source."""
    output, folder = Path(output), source.parent.resolve()
    if output.is_file():
        raise UserError(f"--output {output}: is a file; name a folder")
    if folder in (output.resolve(), *output.resolve().parents):
        raise UserError(f"--output {output}: is in {source.parent}, the folder of the weights; name another folder")
    return output


def _check_types(state: Mapping[str, LazyTensor], source: Path) -> None:
    """Raises UserError for quantized weights, since the sums would keep their errors and lose their size."""
    for name, tensor in state.items():
        is_float = tensor.dtype in FUSED_TYPES and not isinstance(tensor, ScaledTensor)
        if tensor.dtype in FLOATS and not is_float:
            kind = tensor.tensor.dtype if isinstance(tensor, ScaledTensor) else tensor.dtype
            raise UserError(
                f"{source}: {name!r:.100} is quantized ({kind}); fuse into weights of 16 or 32 bits, then quantize the "
                f"result with opensora convert --to q8_0"
            )
