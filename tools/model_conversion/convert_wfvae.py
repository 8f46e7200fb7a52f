"""The published WFVAE checkpoint (a torch file with EMA and plain weights) to safetensors:

    python tools/model_conversion/convert_wfvae.py --src vae/merged.ckpt \
        --target vae/diffusion_pytorch_model.safetensors --config vae/config.json
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone

from opensora.checkpoint.convert import convert  # noqa: E402
from opensora.config.options import str2bool  # noqa: E402
from opensora.utils.cli import CommandParser, run_main  # noqa: E402


def main() -> None:
    parser = CommandParser(description="WFVAE checkpoint -> safetensors, tensor by tensor.")
    parser.add_argument("--src", required=True, help="checkpoint of torch.save")
    parser.add_argument("--target", required=True, help="safetensors file to write")
    parser.add_argument("--config", required=True, help="config.json of the model")
    parser.add_argument("--use_ema", type=str2bool, default=True, help="False: the plain weights (gen_model)")
    args = parser.parse_args()
    convert(args.src, args.target, args.config, args.use_ema)


if __name__ == "__main__":
    run_main(main)
