"""opensora merge: the shards of a model to one safetensors file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from opensora.checkpoint.files import open_state, resolve_path
from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.config.command_line import parse_flags
from opensora.config.commands import MergeOptions
from opensora.errors import UserError


def find_index(folder: str, name: str) -> Path:
    """The path of the index, whose name is relative to `folder` or to the current folder.

    Raises:
        FileNotFoundError, UserError: there is none, or it is not in `folder`.
    """
    shards = resolve_path(folder)
    for path in (shards / name, Path(name)):
        if path.is_file():
            if path.resolve().parent != shards.resolve():
                raise UserError(f"{path}: is not in {shards}, the folder of the shards (-i)")
            return path
    raise FileNotFoundError(f"{name}: no such index, neither here nor in {shards}")


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_flags(
        "Merges the shards of a model into one safetensors file, tensor by tensor.", (MergeOptions,), argv
    )
    index = find_index(args.input_folder, args.index_file)
    write_safetensors(args.output_path, open_state(index, join_scales=False), progress=True, check_finite=True)
