"""Converts a MindSpore checkpoint of this project to safetensors for the PyTorch implementation:

    python tools/model_conversion/convert_ms_to_safetensors.py --src model.ckpt \
        --target diffusion_pytorch_model.safetensors --config config.json
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone

from opensora.models.convert import convert_mindspore  # noqa: E402
from opensora.utils.cli import CommandParser, run_main  # noqa: E402


def main() -> None:
    parser = CommandParser(description="MindSpore checkpoint -> safetensors with torch names.")
    parser.add_argument("--src", required=True, help="MindSpore checkpoint; optimizer state is not converted")
    parser.add_argument("--target", required=True, help="safetensors file to write")
    parser.add_argument("--config", required=True, help="config.json of the model")
    args = parser.parse_args()
    convert_mindspore(args.src, args.target, args.config)


if __name__ == "__main__":
    run_main(main)
