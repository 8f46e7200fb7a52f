"""opensora cast: stores float32 tensors as float16, which halves a file; they are read as before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from opensora.checkpoint.formats.safetensors import read_safetensors, write_safetensors
from opensora.checkpoint.lazy_tensor import ConvertedTensor
from opensora.config.command_line import parse_flags
from opensora.config.commands import CastOptions


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_flags("Stores float32 tensors as float16.", (CastOptions,), argv)
    tensors = {
        name: ConvertedTensor(tensor, "F16", f"{args.input_path}: {name}") if tensor.dtype == "F32" else tensor
        for name, tensor in read_safetensors(args.input_path).items()
    }
    write_safetensors(args.output_path, tensors)
