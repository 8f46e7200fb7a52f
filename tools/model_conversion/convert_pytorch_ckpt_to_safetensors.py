"""Weights of torch.save, one file or shards named by an index.json, to one safetensors file:

    python tools/model_conversion/convert_pytorch_ckpt_to_safetensors.py --src google/mt5-xxl/pytorch_model.bin \
        --target google/mt5-xxl/model.safetensors --config google/mt5-xxl/config.json
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone

from opensora.checkpoint.convert import convert  # noqa: E402
from opensora.config.commands import ConvertOptions  # noqa: E402
from opensora.utils.cli import parse_flags, run_main  # noqa: E402


def main() -> None:
    args = parse_flags("Converts torch weights to safetensors, tensor by tensor.", (ConvertOptions,))
    convert(args.src, args.target, args.config)


if __name__ == "__main__":
    run_main(main)
