"""Reads LoRA files of every common dialect and writes those of diffusers, without MindSpore.

A LoRA changes the weight W (out, in) of a linear layer to W + scale * factor * B A, with A (rank, in), B (out, rank)
and the factor alpha / rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional, Union

import numpy as np

from opensora.checkpoint.element_types import FLOATS, is_finite
from opensora.checkpoint.files import open_state, resolve_path
from opensora.checkpoint.formats.gguf import is_gguf_file
from opensora.checkpoint.formats.safetensors import is_safetensors_file, read_metadata, write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor, ConvertedTensor, LazyTensor
from opensora.checkpoint.lora.names import LayerNames, layers_in_file
from opensora.checkpoint.lora.settings import COMPONENT, LoRASettings
from opensora.errors import UserError
from opensora.utils.json_text import read_json
from opensora.utils.logs import logger
from opensora.utils.numbers import finite_number

LORA_NAME = "pytorch_lora_weights.safetensors"
LORA_FOLDER = "lora"  # of a training checkpoint
NAMES = (LORA_NAME, "adapter_model.safetensors", "pytorch_lora_weights.bin", "adapter_model.bin")
ADAPTER_CONFIG = "adapter_config.json"  # of PEFT, beside adapter_model.*
# Ranks up to this one are read for layers of any size, larger ones only up to the layer's size: a few bytes of a
# PyTorch file can claim any number of equal rows.
LARGEST_RANK = 4096

PathLike = Union[str, Path]
Matrix = Union[np.ndarray, LazyTensor]


@dataclass(frozen=True, eq=False)
class LowRank:
    """The change of one linear layer, factor * B A.

    Attributes:
        a: A (rank, in), float32.
        b: B (out, rank), float32.
        factor: alpha / rank, or for rank-stabilized LoRA alpha / sqrt(rank).
    """

    a: np.ndarray
    b: np.ndarray
    factor: float

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def delta(self) -> np.ndarray:
        """factor * B A, (out, in) float32."""
        return np.float32(self.factor) * (self.b @ self.a)


def linear_layers(state: Mapping[str, LazyTensor]) -> dict[str, tuple[int, int]]:
    """(out, in) of the linear layers of a state dict by name: those of its matrices `NAME.weight`."""
    return {
        name[: -len(".weight")]: (tensor.shape[0], tensor.shape[1])
        for name, tensor in state.items()
        if name.endswith(".weight") and len(tensor.shape) == 2
    }


def find_lora(path: PathLike) -> Path:
    """The LoRA file at a path: the file itself, or the one in a folder of diffusers, PEFT or a training checkpoint.

    Raises:
        FileNotFoundError: no such path, or no LoRA in the folder.
        UserError: the folder has several safetensors files, none with a name of `NAMES`.
    """
    path = resolve_path(path)
    if path.is_file():
        return path
    for folder in (path, path / LORA_FOLDER):
        for name in NAMES:
            if (folder / name).is_file():
                return folder / name
    found = sorted(path.glob("*.safetensors"))
    if len(found) > 1:
        raise UserError(
            f"{path} holds several files ({', '.join(file.name for file in found[:3])}) and no {LORA_NAME}; "
            f"give the path of the LoRA"
        )
    if not found:
        checkpoint = next((each for each in sorted(path.glob("checkpoint-*")) if (each / LORA_FOLDER).is_dir()), None)
        hint = "" if checkpoint is None else f"; give the path of a checkpoint in it, such as {checkpoint}"
        raise FileNotFoundError(f"{path}: no LoRA in this folder ({', '.join(NAMES[:2])}){hint}")
    return found[0]


def read_lora(path: PathLike, modules: Mapping[str, tuple[int, int]]) -> dict[str, LowRank]:
    """The LoRA at a path, by the model's names of the layers.

    Names may be those of diffusers, PEFT, kohya, musubi, ComfyUI and DiffSynth. A layer's alpha is its tensor `.alpha`,
    else that of adapter_config.json or of the file's metadata, else the rank.

    Args:
        path: a file in any format of `checkpoint.files.open_state`, or a folder, see `find_lora`.
        modules: (out, in) of each linear layer of the model by its published name.

    Raises:
        FileNotFoundError: no LoRA at the path.
        UserError: a damaged file, one that is not a LoRA for these layers, or one with other kinds of changes.
    """
    path = find_lora(path)
    state = open_state(path)
    names = layers_in_file(state, modules, path)
    file = _LoRAFile(path, state, read_settings(path))
    layers = {module: file.low_rank(module, names[module], modules[module]) for module in names}
    if not any(layer.factor and layer.a.any() and layer.b.any() for layer in layers.values()):
        logger.warning(f"{path}: changes nothing: in every layer alpha, lora_A or lora_B is zero")
    return layers


def read_settings(path: PathLike) -> Optional[LoRASettings]:
    """The settings that a LoRA file or the adapter_config.json beside it holds; None: there are none.

    Raises:
        FileNotFoundError: no LoRA at the path.
        UserError: invalid settings, or those of an adapter that is not supported.
    """
    path = find_lora(path)
    config = path.with_name(ADAPTER_CONFIG)
    if path.name.startswith("adapter_model.") and config.is_file():
        return LoRASettings.from_config(read_json(config), str(config))
    with open(path, "rb") as file:
        start = file.read(16)
    if not is_safetensors_file(start) or is_gguf_file(start):
        return None
    return LoRASettings.from_metadata(read_metadata(path), str(path))


def tensor_names(module: str) -> tuple[str, str]:
    """The names of A and B of a layer in the files that `write_lora` writes."""
    return f"{COMPONENT}{module}.lora_A.weight", f"{COMPONENT}{module}.lora_B.weight"


def write_lora(
    path: PathLike,
    layers: Mapping[str, Union[LowRank, tuple[Matrix, Matrix]]],
    settings: LoRASettings,
    notes: Mapping[str, str] = {},
) -> None:
    """Writes a LoRA in float32 with the names and metadata of diffusers, one tensor at a time, atomically.

    Args:
        path: must end in .safetensors.
        layers: by name, the matrices A (rank, in) and B (out, rank). Tensors that are read on demand are read in the
            order of the layers, A before B. A pair without a factor has that of the settings.
        settings: for the metadata. Ranks and factors that differ from them become patterns. Targets that are a
            regular expression, or do not select every layer, are replaced by the layers' names.
        notes: further texts for the metadata, by key.

    Raises:
        UserError: a path that does not end in .safetensors, or no layers.
        OSError: the disk is full or not writable.
    """
    if not layers:
        raise UserError(f"{path}: there are no layers to write")
    matrices = {name: (layer.a, layer.b) if isinstance(layer, LowRank) else layer for name, layer in layers.items()}
    tensors = {
        name: _as_float32(matrix, name)
        for module, pair in matrices.items()
        for name, matrix in zip(tensor_names(module), pair)
    }
    fitted = settings.fitted(
        {name: a.shape[0] for name, (a, _) in matrices.items()},
        {name: layer.factor for name, layer in layers.items() if isinstance(layer, LowRank)},
    )
    write_safetensors(path, tensors, metadata={**notes, **fitted.to_metadata()})


def _as_float32(matrix: Matrix, name: str) -> LazyTensor:
    tensor = matrix if isinstance(matrix, LazyTensor) else ArrayTensor(matrix)
    return tensor if tensor.dtype == "F32" else ConvertedTensor(tensor, "F32", name)


class _LoRAFile(NamedTuple):
    """An open file; errors name it."""

    path: Path
    state: Mapping[str, LazyTensor]
    settings: Optional[LoRASettings]

    def low_rank(self, module: str, names: LayerNames, shape: tuple[int, int]) -> LowRank:
        """The change of a layer of shape (out, in). Its tensors are read after their shapes are checked."""
        for name in (names.a, names.b):
            if len(self.state[name].shape) != 2:
                raise UserError(
                    f"{self.path}: {name!r:.100} has the shape {tuple(self.state[name].shape)!s:.60}, not that of a "
                    f"matrix; only LoRA of linear layers is supported"
                )
        (rank, width), (height, columns) = self.state[names.a].shape, self.state[names.b].shape
        if (height, width) != shape:
            raise UserError(
                f"{self.path}: {names.stem!r:.100} is for a layer of shape {(height, width)}, but that of this model "
                f"has {shape}; the LoRA may be for another model"
            )
        if rank != columns or not 0 < rank <= max(LARGEST_RANK, *shape):
            raise UserError(
                f"{self.path}: {names.stem!r:.100} has the rank {rank} in A and {columns} in B; save the LoRA again"
            )
        return LowRank(self._matrix(names.a), self._matrix(names.b), self._factor(module, names, rank))

    def _factor(self, module: str, names: LayerNames, rank: int) -> float:
        if names.alpha is not None:
            tensor = self.state[names.alpha]
            if math.prod(tensor.shape) != 1:
                raise UserError(
                    f"{self.path}: {names.alpha!r:.100} has the shape {tuple(tensor.shape)!s:.60}; "
                    f"it should be one number"
                )
            return finite_number(tensor.numpy().item(), f"{self.path}: {names.alpha!r:.100}", 0) / rank
        if self.settings is None:
            return 1.0
        stated = self.settings.rank_of(names.stem, module)
        if stated != rank:
            raise UserError(
                f"{self.path}: {names.stem!r:.100} has the rank {rank}, but the settings of the file say {stated}, "
                f"so its scale is unknown; save the LoRA again"
            )
        return self.settings.factor_of(names.stem, module)

    def _matrix(self, name: str) -> np.ndarray:
        tensor = self.state[name]
        if tensor.dtype not in FLOATS:
            raise UserError(f"{self.path}: {name!r:.100} holds integers ({tensor.dtype}); save the LoRA as float32")
        with np.errstate(over="ignore"):  # of float64; the result is refused
            values = tensor.numpy().astype(np.float32, copy=False)
        if not is_finite(values):
            raise UserError(
                f"{self.path}: {name!r:.100} holds NaN or infinity; take an earlier checkpoint of the training"
            )
        return values
