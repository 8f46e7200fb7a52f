"""Merges the shards of a model into one safetensors file:

    python tools/ckpt/merge_safetensors.py -i DIR -o FILE -f diffusion_pytorch_model.safetensors.index.json

-f is the name of the index in DIR, or its path.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone


from opensora.checkpoint.files import open_state, resolve_path  # noqa: E402
from opensora.checkpoint.formats.safetensors import write_safetensors  # noqa: E402
from opensora.errors import UserError  # noqa: E402
from opensora.utils.cli import CommandParser, run_main  # noqa: E402


def find_index(folder: str, name: str) -> Path:
    """The path of the index. Raises FileNotFoundError if it does not exist, UserError if it is not in `folder`."""
    folder = resolve_path(folder)
    for place in (folder / name, Path(name)):
        if place.is_file():
            if place.resolve().parent != folder.resolve():
                raise UserError(f"{place}: is not in {folder}, the folder of the shards (-i)")
            return place
    raise FileNotFoundError(f"{name}: no such index, neither in {folder} nor as a path")


def main() -> None:
    parser = CommandParser(description="Shards -> one safetensors file, one tensor at a time.")
    parser.add_argument("-i", "--input_folder", required=True, help="folder of the shards")
    parser.add_argument("-o", "--output_path", required=True, help="safetensors file to write")
    parser.add_argument("-f", "--index_file", required=True, help="the index.json: name in that folder, or path")
    args = parser.parse_args()
    index = find_index(args.input_folder, args.index_file)
    write_safetensors(args.output_path, open_state(index), progress=True, check_finite=True)


if __name__ == "__main__":
    run_main(main)
