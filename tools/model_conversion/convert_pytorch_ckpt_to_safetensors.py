"""Converts PyTorch weights, one file or shards with an index.json, to one safetensors file:

    python tools/model_conversion/convert_pytorch_ckpt_to_safetensors.py --src google/mt5-xxl/pytorch_model.bin \
        --target google/mt5-xxl/model.safetensors --config google/mt5-xxl/config.json
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone

from opensora.checkpoint.convert import convert  # noqa: E402
from opensora.utils.cli import CommandParser, run_main  # noqa: E402


def main() -> None:
    parser = CommandParser(description="Torch weights -> safetensors, one tensor at a time.")
    parser.add_argument("--src", required=True, help="file of torch.save, or index.json of shards")
    parser.add_argument("--target", required=True, help="safetensors file to write")
    parser.add_argument("--config", required=True, help="config.json of the model")
    args = parser.parse_args()
    convert(args.src, args.target, args.config)


if __name__ == "__main__":
    run_main(main)
