"""A MindSpore checkpoint of this project to safetensors that PyTorch opens:

    python tools/model_conversion/convert_ms_to_safetensors.py --src model.ckpt \
        --target diffusion_pytorch_model.safetensors --config config.json
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone

from opensora.checkpoint.convert import convert_mindspore  # noqa: E402
from opensora.config.commands import ConvertMindSporeOptions  # noqa: E402
from opensora.utils.cli import parse_flags, run_main  # noqa: E402


def main() -> None:
    args = parse_flags("Converts a MindSpore checkpoint to safetensors with torch names.", (ConvertMindSporeOptions,))
    convert_mindspore(args.src, args.target, args.config)


if __name__ == "__main__":
    run_main(main)
