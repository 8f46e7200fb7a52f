"""Reconstructs an image with a VAE and says how close it came.

python examples/rec_image.py --ae WFVAEModel_D8_4x8x8 --ae_path weights/vae --image_path a.jpg --rec_path rec.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a fresh clone

from opensora.utils.supervision import supervise  # noqa: E402

if __name__ == "__main__":
    supervise()  # under msrun, before MindSpore is imported

from opensora.config.commands import RecImageOptions, ReconstructOptions  # noqa: E402
from opensora.config.device import DeviceOptions  # noqa: E402
from opensora.utils.cli import parse_flags, run_main  # noqa: E402


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    return parse_flags(
        "Encodes and decodes an image with a VAE.", (ReconstructOptions, RecImageOptions, DeviceOptions), argv
    )


def main() -> None:
    args = parse_args()
    from opensora import device
    from opensora.datasets.media import check_image_suffix
    from opensora.models import get_vae
    from opensora.pipelines.reconstruct import Reconstructor, read_picture, reconstruct_image

    check_image_suffix(args.rec_path)
    picture = read_picture(args.image_path, args.short_size, args.ae)
    dev = device.setup(args)
    reconstruct = Reconstructor(get_vae(args.ae, args.ae_path, dev.dtype, args.ms_checkpoint), dev.dtype)
    scores = reconstruct_image(reconstruct, picture, args.rec_path)
    print(f"encode {reconstruct.encode_seconds:.2f} s, decode {reconstruct.decode_seconds:.2f} s")
    print(f"PSNR {scores['psnr']:.2f} dB, SSIM {scores['ssim']:.4f} (decoded uint8 pixels against the input's)")
    print(args.rec_path)


if __name__ == "__main__":
    run_main(main)
