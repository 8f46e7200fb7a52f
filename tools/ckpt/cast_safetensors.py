"""Stores the float32 tensors of a safetensors file as float16, which halves it; they are read as before:

python tools/ckpt/cast_safetensors.py -i FILE -o FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone


from opensora.checkpoint.formats.safetensors import read_safetensors, write_safetensors  # noqa: E402
from opensora.checkpoint.lazy_tensor import ArrayTensor, LazyTensor  # noqa: E402
from opensora.config.commands import CastOptions  # noqa: E402
from opensora.errors import UserError  # noqa: E402
from opensora.utils.cli import parse_flags, run_main  # noqa: E402


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


def main() -> None:
    args = parse_flags("Stores float32 tensors as float16.", (CastOptions,))
    tensors = {
        name: as_float16(f"{args.input_path}: {name}", tensor)
        for name, tensor in read_safetensors(args.input_path).items()
    }
    write_safetensors(args.output_path, tensors)


if __name__ == "__main__":
    run_main(main)
