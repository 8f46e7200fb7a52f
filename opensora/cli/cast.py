"""opensora cast: stores float32 tensors as float16, which halves a file; they are read as before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import numpy as np

from opensora.checkpoint.formats.safetensors import read_safetensors, write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor, LazyTensor
from opensora.config.command_line import parse_flags
from opensora.config.commands import CastOptions
from opensora.errors import UserError


def as_float16(name: str, tensor: LazyTensor) -> LazyTensor:
    """Raises UserError for numbers that float16 does not reach."""
    if tensor.dtype != "F32":
        return tensor
    values = tensor.numpy()
    with np.errstate(over="ignore"):
        halved = values.astype(np.float16)
    if not np.isfinite(halved[np.isfinite(values)]).all():
        raise UserError(f"{name}: holds {np.abs(values).max():g}, more than float16's 65504; leave the file as it is")
    return ArrayTensor(halved)


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_flags("Stores float32 tensors as float16.", (CastOptions,), argv)
    tensors = {
        name: as_float16(f"{args.input_path}: {name}", tensor)
        for name, tensor in read_safetensors(args.input_path).items()
    }
    write_safetensors(args.output_path, tensors)
