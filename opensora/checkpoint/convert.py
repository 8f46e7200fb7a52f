"""Converts checkpoints of any supported format to safetensors or GGUF, in 32, 16 or 8 bits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import numpy as np

from opensora.checkpoint.element_types import FLOATS
from opensora.checkpoint.files import open_state, read_config
from opensora.checkpoint.formats.gguf import ARCHITECTURE, OWN_PREFIX, write_gguf
from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.checkpoint.lazy_tensor import ConvertedTensor, LazyTensor
from opensora.checkpoint.quantized import Q8_BLOCK, may_be_q8_0
from opensora.checkpoint.shape_check import check_shapes, class_name
from opensora.checkpoint.t5_names import ARCHITECTURES as T5_ARCHITECTURES
from opensora.errors import UserError

PathLike = Union[str, Path]


class Precision(NamedTuple):
    """A choice of `--to`: the type of large weights, the number of the precision in GGUF, and the default format."""

    dtype: str
    file_type: int
    format: str = "safetensors"


PRECISIONS = {
    "q8_0": Precision("Q8_0", 7, "gguf"),
    "bf16": Precision("BF16", 32),
    "fp16": Precision("F16", 1),
    "fp32": Precision("F32", 0),
}
SMALL_TENSOR = 1024  # values, up to which a tensor stays float32
# Names with one of these components stay float32: the conditioning on time, and the bias of T5's attention.
FLOAT32_NAMES = (
    *("adaln_single", "scale_shift_table", "relative_attention_bias"),
    *("t_embedder", "csize_embedder", "ar_embedder", "fl_embedder", "fps_embedder", "t_block", "t_block_temp"),
)
T5_CLASS = "MT5EncoderModel"
T5_DECODER = ("decoder.", "lm_head.")
T5_CONTEXT = 512  # tokens that T5 was trained with
TIED_EMBEDDING = "encoder.embed_tokens.weight"  # the same tensor as shared.weight
# For each key of T5's config.json its keys in GGUF, and its default, which has the right type.
T5_KEYS = (
    ("vocab_size", ("vocab_size",), 250112),
    ("d_model", ("embedding_length",), 512),
    ("d_ff", ("feed_forward_length",), 1024),
    ("num_layers", ("block_count",), 8),
    ("num_heads", ("attention.head_count",), 6),
    ("d_kv", ("attention.key_length", "attention.value_length"), 64),
    ("relative_attention_num_buckets", ("attention.relative_buckets_count",), 32),
    ("layer_norm_epsilon", ("attention.layer_norm_rms_epsilon",), 1e-6),
)


def convert(
    src: PathLike,
    target: PathLike,
    config_path: PathLike,
    use_ema: bool = True,
    to: Optional[str] = None,
    format: Optional[str] = None,
) -> None:
    """Converts weights of any supported format, one tensor at a time, and keeps all names.

    Tied weights are stored once per name, since safetensors has no aliases and readers may look for either name.

    Args:
        src: the weights.
        target: the file to write.
        config_path: the model's config.json.
        use_ema: convert the EMA weights of a training checkpoint; False: the plain weights.
        to: one of `PRECISIONS`; None: safetensors with the types and names of the source.
        format: safetensors or gguf; None: that of the precision.

    Raises:
        FileNotFoundError, UserError, OSError: source or config cannot be used or do not match, or the disk is full.
            Nothing is written then.
    """
    config = read_config(config_path)
    state = open_state(src, use_ema, join_scales=to is not None)
    check_shapes(state, src, config, config_path)
    write_weights(target, state, config, config_path, to, format)


def write_weights(
    target: PathLike,
    state: Mapping[str, LazyTensor],
    config: Mapping[str, Any],
    config_path: PathLike,
    to: Optional[str] = None,
    format: Optional[str] = None,
) -> None:
    """Writes the weights of the model of `config`; see `convert`. With `to`, prints the sizes before and after."""
    if to is None:
        if format:
            raise UserError(f"--format {format} needs --to, one of {', '.join(PRECISIONS)}")
        write_safetensors(target, state, progress=True, check_finite=True)
        return
    precision = PRECISIONS[to]
    format = format or precision.format
    if Path(target).suffix != f".{format}":
        raise UserError(
            f"--target {target}: the name of a {format} file must end in .{format}; change it, or give --format"
        )
    kind = class_name(config, config_path)
    if kind == T5_CLASS:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(T5_DECODER)}
    before = sum(tensor.stored_nbytes for tensor in set(state.values()))  # tied weights are equal FileTensors
    tensors = {name: _converted(name, tensor, precision.dtype, target) for name, tensor in state.items()}
    if format == "gguf":
        if kind == T5_CLASS and TIED_EMBEDDING in tensors:
            tensors.setdefault("shared.weight", tensors.pop(TIED_EMBEDDING))
        metadata = _metadata(kind, config, config_path, precision)
        write_gguf(target, tensors, metadata, progress=True, check_finite=True)
    else:
        tensors = dict(_with_scales(tensors))
        write_safetensors(target, tensors, progress=True, check_finite=True)
    counts = Counter(tensor.dtype for tensor in tensors.values())
    types = ", ".join(f"{count} {dtype}" for dtype, count in counts.items())
    after = sum(tensor.nbytes for tensor in tensors.values())
    print(f"{target}: {before / 1e9:.3g} GB of weights became {after / 1e9:.3g} GB; tensors: {types}")


def _converted(name: str, tensor: LazyTensor, dtype: str, target: PathLike) -> LazyTensor:
    """The tensor in the type that it has in a file whose large weights have type `dtype`."""
    if tensor.dtype not in FLOATS:
        return tensor
    is_small = len(tensor.shape) < 2 or math.prod(tensor.shape) <= SMALL_TENSOR
    if is_small or any(kept in name.split(".") for kept in FLOAT32_NAMES):
        dtype = "F32"
    elif dtype == "Q8_0" and not may_be_q8_0(name, tensor.shape):
        dtype = tensor.dtype if tensor.dtype in ("F16", "BF16") else "F32"
    return tensor if dtype == tensor.dtype else ConvertedTensor(tensor, dtype, f"{target}: {name}")


class _Q8Field(LazyTensor):
    """The integers (I8) or the scales (F16) of a tensor in Q8_0."""

    def __init__(self, source: LazyTensor, dtype: str):
        rows, width = source.shape
        self.source, self.dtype = source, dtype
        self.shape = (rows, width if dtype == "I8" else width // Q8_BLOCK)

    def iter_bytes(self) -> Iterator:
        for q, scale in self.source.iter_q8_0():
            yield (q if self.dtype == "I8" else scale).view(np.uint8)


def _with_scales(tensors: Mapping[str, LazyTensor]) -> Iterator[tuple[str, LazyTensor]]:
    """The tensors for safetensors, which has no blocks: Q8_0 becomes integers `X` and scales `X_scale`."""
    for name, tensor in tensors.items():
        if tensor.dtype == "Q8_0":
            yield name, _Q8Field(tensor, "I8")
            yield f"{name}_scale", _Q8Field(tensor, "F16")
        else:
            yield name, tensor


def _metadata(
    kind: str, config: Mapping[str, Any], config_path: PathLike, precision: Precision
) -> dict[str, Union[str, int, float]]:
    """The keys of a GGUF file for a model of class `kind`, for T5 those of llama.cpp.

    Raises:
        UserError: GGUF files do not hold such a model, or a value of the config is not a number.
    """
    general = {"general.file_type": precision.file_type, "general.quantization_version": 2}
    if kind != T5_CLASS:
        if not kind.lower().startswith(OWN_PREFIX):
            raise UserError(f"{config_path}: a GGUF file cannot hold a {kind}; add --format safetensors")
        return {ARCHITECTURE: kind.lower(), **general}
    keys: dict[str, Union[int, float]] = {"context_length": T5_CONTEXT}
    for key, names, default in T5_KEYS:
        value = config.get(key, default)
        if type(value) is not type(default) or not 0 < value < 1 << 32:
            raise UserError(f"{config_path}: {key} {value!r:.60} should be a positive number like {default}")
        keys.update(dict.fromkeys(names, value))
    architecture = T5_ARCHITECTURES[0]
    return {ARCHITECTURE: architecture, **{f"{architecture}.{name}": value for name, value in keys.items()}, **general}
