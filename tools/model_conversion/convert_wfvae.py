"""The published WFVAE checkpoint (a torch file with EMA and plain weights) to safetensors:

    python tools/model_conversion/convert_wfvae.py --src vae/merged.ckpt \
        --target vae/diffusion_pytorch_model.safetensors --config vae/config.json
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone

from opensora.checkpoint.convert import convert  # noqa: E402
from opensora.config.commands import ConvertWFVAEOptions  # noqa: E402
from opensora.utils.cli import parse_flags, run_main  # noqa: E402


def main() -> None:
    args = parse_flags("Converts a WFVAE checkpoint to safetensors, tensor by tensor.", (ConvertWFVAEOptions,))
    convert(args.src, args.target, args.config, args.use_ema)


if __name__ == "__main__":
    run_main(main)
