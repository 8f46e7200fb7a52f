"""Merges the shards of a model into one safetensors file:

    python tools/ckpt/merge_safetensors.py -i DIR -o FILE -f diffusion_pytorch_model.safetensors.index.json

-f may be the index's name in DIR or its full path.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone


from opensora.checkpoint.files import open_state, resolve_path  # noqa: E402
from opensora.checkpoint.formats.safetensors import write_safetensors  # noqa: E402
from opensora.config.commands import MergeOptions  # noqa: E402
from opensora.errors import UserError  # noqa: E402
from opensora.utils.cli import parse_flags, run_main  # noqa: E402


def find_index(folder: str, name: str) -> Path:
    """The index a command line means. Raises FileNotFoundError or ValueError if it is not there, or not in `folder`."""
    folder = resolve_path(folder)
    for place in (folder / name, Path(name)):
        if place.is_file():
            if place.resolve().parent != folder.resolve():
                raise UserError(f"{place}: is not in {folder}, the folder of the shards (-i)")
            return place
    raise FileNotFoundError(f"{name}: no such index, neither here nor in {folder}")


def main() -> None:
    args = parse_flags("Merges the shards of a model into one safetensors file, tensor by tensor.", (MergeOptions,))
    index = find_index(args.input_folder, args.index_file)
    write_safetensors(args.output_path, open_state(index), progress=True, check_finite=True)


if __name__ == "__main__":
    run_main(main)
