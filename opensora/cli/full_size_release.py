"""Random weights with the layout and sizes of the published release, for measurements without the download."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np

from opensora.checkpoint.files import resolve_path
from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.checkpoint.lazy_tensor import NUMPY_TYPES, ArrayTensor, FileTensor, LazyTensor, ScatteredFile
from opensora.cost_model.stages import AUTOENCODER, TEXT_ENCODER
from opensora.errors import UserError
from opensora.models import MT5EncoderModel, OpenSoraT2V_v1_3, WFVAEModel
from opensora.models.dit.config import PRESETS
from opensora.models.pretrained import WEIGHTS_NAME, PretrainedModel
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.utils.files import atomic_write
from opensora.utils.folder_lock import check_free_space, exclusive_folder
from opensora.utils.json_text import read_json
from opensora.utils.logs import logger

TRANSFORMER = {
    **PRESETS["OpenSoraT2V_v1_3-2B/122"],
    # the latent size of 93x640x640
    "sample_size_t": 24,
    "sample_size_h": 80,
    "sample_size_w": 80,
}
WEIGHTS = "LanguageBind/Open-Sora-Plan-v1.3.0"
TEXT_ENCODER_FOLDER = "google/mt5-xxl"
TOKENIZER_FILES = ("spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
TYPES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
TRANSFORMER_SHARDS = 3
SHARD_BYTES = 5e9  # of the text encoder, as in transformers
SETTINGS_NAME = ".unfinished.json"  # settings of the run, in the output folder until everything is written

# Values that are drawn; tensors repeat them from different positions. Both numbers are prime: `POSITION_STEP` times the
# number of a tensor is another position for each tensor, and rows of a matrix repeat after `BLOCK_SIZE` rows only.
BLOCK_SIZE = 1048573
POSITION_STEP = 999983
BIAS_SPREAD = 0.02


@lru_cache(maxsize=4)
def _numbers(seed: int, mean: float, spread: float, dtype: str) -> bytes:
    """`BLOCK_SIZE` normal random numbers of a type of safetensors."""
    numbers = np.random.default_rng(seed).standard_normal(BLOCK_SIZE, np.float32)
    numbers *= np.float32(spread)
    numbers += np.float32(mean)
    if dtype != "BF16":
        return numbers.astype(NUMPY_TYPES[dtype], copy=False).tobytes()
    bits = numbers.view(np.uint32)
    bits += np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))  # round to nearest even
    return (bits >> np.uint32(16)).astype(NUMPY_TYPES[dtype]).tobytes()


class RepeatedNumbers(ScatteredFile):
    """Normal random numbers with the interface of a file, which repeats after `BLOCK_SIZE` of them.

    Args:
        seed: of the numbers.
        mean, spread: mean and standard deviation.
        dtype: type of safetensors.
    """

    def __init__(self, seed: int, mean: float, spread: float, dtype: str):
        self.numbers = (seed, mean, spread, dtype)

    def read(self, offset: int, size: int) -> bytearray:
        """Reads `size` bytes at `offset`."""
        block = memoryview(_numbers(*self.numbers))
        data, done = bytearray(size), 0
        while done < size:
            start = (offset + done) % len(block)
            piece = block[start : start + size - done]
            data[done : done + len(piece)] = piece
            done += len(piece)
        return data


def distribution(name: str, shape: Sequence[int], d_kv: int = 1) -> tuple[float, float]:
    """Mean and standard deviation of a parameter, with which activations keep their scale.

    Weights have variance 1 / fan-in. T5 does not divide the scores of attention by sqrt(d_kv), so its query weights
    are smaller by this factor (Raffel et al. 2020, arXiv:1910.10683).
    """
    if name.endswith("scale_shift_table"):
        return 0.0, shape[-1] ** -0.5
    if len(shape) == 1:
        is_norm_weight = "norm" in name and name.endswith(".weight")
        return (1.0, 0.0) if is_norm_weight else (0.0, BIAS_SPREAD)
    if name in MT5EncoderModel.aliases or "relative_attention_bias" in name:
        return 0.0, 1.0
    spread = float(np.prod(shape[1:])) ** -0.5
    return 0.0, spread * (d_kv**-0.5 if name.endswith("SelfAttention.q.weight") else 1)


class Component(NamedTuple):
    """One folder of weights.

    Attributes:
        folder: relative to the output folder.
        model: class of the model.
        config: keys of its config.json.
        dtype: stored type, of `TYPES`.
        weights: name of the file of weights, from which the names of shards and index derive.
        shards: number of files; None: as many as have at most about `SHARD_BYTES`.
        metadata: keys of config.json that other libraries read.
    """

    folder: str
    model: type[PretrainedModel]
    config: Mapping[str, Any]
    dtype: str
    weights: str
    shards: Optional[int]
    metadata: Mapping[str, Any]

    def tensors(self, seed: int) -> dict[str, LazyTensor]:
        """The tensors by the names under which they are published."""
        model = self.model.without_weights(**self.config)
        published = {name: alias for alias, name in model.aliases.items()}
        tensors: dict[str, LazyTensor] = {}
        dtype = TYPES[self.dtype]
        for number, (parameter_name, parameter) in enumerate(model.parameters_and_names()):
            name, shape = published.get(parameter_name, parameter_name), tuple(parameter.shape)
            mean, spread = distribution(name, shape, self.config.get("d_kv", 1))
            offset = number * POSITION_STEP % BLOCK_SIZE * NUMPY_TYPES[dtype].itemsize
            tensors[name] = FileTensor(RepeatedNumbers(seed, mean, spread, dtype), offset, shape, dtype)
        tensors.update({name: ArrayTensor(value) for name, value in model.torch_buffers().items()})
        return tensors

    def files(self, tensors: Mapping[str, LazyTensor]) -> dict[str, dict[str, LazyTensor]]:
        """The tensors of each file by its name."""
        total = _size(tensors)
        count = self.shards or int(-(-total // SHARD_BYTES))
        position, shard_of = 0, {}
        for name, tensor in tensors.items():
            shard_of[name] = position * count // total
            position += tensor.nbytes
        groups = [list(names) for _, names in groupby(tensors, shard_of.__getitem__)]
        if len(groups) == 1:
            return {self.weights: dict(tensors)}
        stem, suffix = Path(self.weights).stem, Path(self.weights).suffix
        return {
            f"{stem}-{number:05}-of-{len(groups):05}{suffix}": {name: tensors[name] for name in names}
            for number, names in enumerate(groups, 1)
        }

    def full_config(self) -> dict[str, Any]:
        """The content of config.json."""
        return {**self.metadata, **self.model.config_class.from_dict(self.config).to_dict()}


def components(
    dtype: str = "bf16",
    transformer: Mapping[str, Any] = TRANSFORMER,
    autoencoder: Mapping[str, Any] = AUTOENCODER,
    text_encoder: Mapping[str, Any] = TEXT_ENCODER,
) -> list[Component]:
    """The folders of the release; the configurations are by default the published ones."""
    return [
        Component(
            f"{WEIGHTS}/any93x640x640",
            OpenSoraT2V_v1_3,
            transformer,
            dtype,
            WEIGHTS_NAME,
            TRANSFORMER_SHARDS,
            {"_class_name": "OpenSoraT2V_v1_3"},
        ),
        Component(f"{WEIGHTS}/vae", WFVAEModel, autoencoder, "fp32", WEIGHTS_NAME, 1, {"_class_name": "WFVAEModel"}),
        Component(
            TEXT_ENCODER_FOLDER,
            MT5EncoderModel,
            text_encoder,
            dtype,
            "model.safetensors",
            None,
            {"architectures": ["MT5EncoderModel"], "model_type": "mt5"},
        ),
    ]


def write_release(output_dir: Path, release: Sequence[Component], tokenizer: Path, seed: int = 0) -> None:
    """Writes the folders of a release. A rerun with the same arguments keeps the files that an interrupted run wrote.

    Files appear when they are complete, and the config.json of a folder, without which no model loads, is the last.

    Args:
        output_dir: a new or empty folder, or that of an interrupted run.
        release: see `components`.
        tokenizer: folder whose tokenizer is copied.
        seed: of the weights.

    Raises:
        UserError: the folder holds other files, or there is no tokenizer.
        OSError: the disk has too little space or is not writable.
    """
    tokenizer = resolve_path(tokenizer)
    Tokenizer(tokenizer)  # raises an error for a missing or damaged one
    settings = json.dumps(
        {"seed": seed, **{item.folder: {**item.full_config(), "stored type": item.dtype} for item in release}}, indent=2
    )
    with exclusive_folder(output_dir):
        _check_folder(output_dir, json.loads(settings))
        files = {output_dir / item.folder: item.files(item.tensors(seed)) for item in release}
        missing = {
            folder / name: tensors
            for folder, contents in files.items()
            for name, tensors in contents.items()
            if not (folder / name).exists()
        }
        check_free_space(output_dir, sum(map(_size, missing.values())))
        _write_text(output_dir / SETTINGS_NAME, settings)
        for path, tensors in missing.items():
            write_safetensors(path, tensors, progress=True)
        for name in TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                with atomic_write(output_dir / TEXT_ENCODER_FOLDER / name) as temporary:
                    temporary.write_bytes((tokenizer / name).read_bytes())
        for item in release:
            folder = output_dir / item.folder
            if len(files[folder]) > 1:
                _write_text(folder / f"{item.weights}.index.json", _index(files[folder]))
            _write_text(folder / "config.json", json.dumps(item.full_config(), indent=2))
        (output_dir / SETTINGS_NAME).unlink()
    logger.info(f"{output_dir}: the weights are complete")


def _check_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Raises UserError if a folder is neither empty nor that of an interrupted run with the same settings."""
    if (folder / SETTINGS_NAME).is_file():
        if read_json(folder / SETTINGS_NAME) != settings:
            raise UserError(
                f"{folder}: an interrupted run with other settings wrote to this folder; delete it, or choose another"
            )
    elif any(not path.name.startswith(".") for path in folder.iterdir()):
        raise UserError(f"{folder}: --output_dir is not empty; choose a new folder, or delete this one")


def _size(tensors: Mapping[str, LazyTensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _index(files: Mapping[str, Mapping[str, LazyTensor]]) -> str:
    """The content of the index.json of shards."""
    weight_map = {tensor: name for name, tensors in files.items() for tensor in tensors}
    return json.dumps({"metadata": {"total_size": sum(map(_size, files.values()))}, "weight_map": weight_map}, indent=2)


def _write_text(path: Path, text: str) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
