"""Reconstructs an image with a VAE and says how close it came.

python examples/rec_image.py --ae WFVAEModel_D8_4x8x8 --ae_path weights/vae --image_path a.jpg --rec_path rec.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a fresh clone

from opensora.process.supervision import supervise  # noqa: E402

if __name__ == "__main__":
    supervise()  # under msrun, before MindSpore is imported

from opensora import device  # noqa: E402
from opensora.datasets.media import check_image_suffix  # noqa: E402
from opensora.models import get_vae  # noqa: E402
from opensora.pipelines.reconstruct import Reconstructor, read_image_clip, reconstruct_image  # noqa: E402
from opensora.utils.cli import CommandParser, run_main  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = CommandParser(description="Image -> VAE -> image.")
    parser.add_argument("--ae", default="WFVAEModel_D8_4x8x8", help="name of the VAE")
    parser.add_argument("--ae_path", required=True, help="folder with config.json and weights")
    parser.add_argument("--ms_checkpoint", help="weights of this file instead of those in --ae_path")
    parser.add_argument("--image_path", required=True, help="the image to reconstruct")
    parser.add_argument("--rec_path", required=True, help="where the reconstruction goes (.png, .jpg ...)")
    parser.add_argument("--short_size", type=int, default=336, help="pixels of the shorter side")
    device.add_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    check_image_suffix(args.rec_path)
    picture = read_image_clip(args.image_path, args.short_size, args.ae)
    dev = device.setup(args)
    reconstruct = Reconstructor(get_vae(args.ae, args.ae_path, dev.dtype, args.ms_checkpoint), dev.dtype)
    scores = reconstruct_image(reconstruct, picture, args.rec_path)
    print(f"encode {reconstruct.encode_seconds:.2f} s, decode {reconstruct.decode_seconds:.2f} s")
    print(f"PSNR {scores['psnr']:.2f} dB, SSIM {scores['ssim']:.4f} (decoded uint8 pixels against the input's)")
    print(args.rec_path)


if __name__ == "__main__":
    run_main(main)
