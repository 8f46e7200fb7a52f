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
    """The index a command line means. Raises FileNotFoundError or ValueError if it is not there, or not in `folder`."""
    folder = resolve_path(folder)
    for place in (folder / name, Path(name)):
        if place.is_file():
            if place.resolve().parent != folder.resolve():
                raise UserError(f"{place}: is not in {folder}, the folder of the shards (-i)")
            return place
    raise FileNotFoundError(f"{name}: no such index, neither here nor in {folder}")


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = CommandParser(description="Shards -> one safetensors file, tensor by tensor.")
    parser.add_argument("-i", "--input_folder", required=True, help="folder of the shards")
    parser.add_argument("-o", "--output_path", required=True, help="safetensors file to write")
    parser.add_argument("-f", "--index_file", required=True, help="the index.json: its name in that folder or its path")
    args = parser.parse_args(argv)
    index = find_index(args.input_folder, args.index_file)
    write_safetensors(args.output_path, open_state(index), progress=True, check_finite=True)
