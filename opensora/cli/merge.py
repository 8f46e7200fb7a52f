"""opensora merge: the shards of a model to one safetensors file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from opensora.checkpoint.files import open_state, resolve_path
from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.errors import UserError
from opensora.utils.cli import CommandParser


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
    parser = CommandParser(description="Shards -> one safetensors file, tensor by tensor.")
    parser.add_argument("-i", "--input_folder", required=True, help="folder of the shards")
    parser.add_argument("-o", "--output_path", required=True, help="safetensors file to write")
    parser.add_argument("-f", "--index_file", required=True, help="the index.json: its name in that folder or its path")
    args = parser.parse_args(argv)
    index = find_index(args.input_folder, args.index_file)
    write_safetensors(args.output_path, open_state(index), progress=True, check_finite=True)
