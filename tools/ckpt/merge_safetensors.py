"""Merges the shards of a model into one safetensors file:

    python tools/ckpt/merge_safetensors.py -i DIR -o FILE -f diffusion_pytorch_model.safetensors.index.json
"""
from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone

from opensora.models.checkpoint_files import open_state  # noqa: E402
from opensora.models.safetensors_file import write_safetensors  # noqa: E402
from opensora.utils.cli import CommandParser, run_main  # noqa: E402


def main() -> None:
    parser = CommandParser(description="Shards -> one safetensors file, tensor by tensor.")
    parser.add_argument("-i", "--input_folder", required=True, help="folder of the shards")
    parser.add_argument("-o", "--output_path", required=True, help="safetensors file to write")
    parser.add_argument("-f", "--index_file", required=True, help="name of the index.json in that folder")
    args = parser.parse_args()
    write_safetensors(args.output_path, open_state(Path(args.input_folder) / args.index_file), progress=True)


if __name__ == "__main__":
    run_main(main)
