"""Reconstructs a video with a VAE and says how close it came.

python examples/rec_video.py --ae WFVAEModel_D8_4x8x8 --ae_path weights/vae --video_path clip.mp4 --rec_path rec.mp4
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

from opensora.config.commands import ReconstructOptions, RecVideoOptions  # noqa: E402
from opensora.config.device import DeviceOptions  # noqa: E402
from opensora.utils.cli import parse_flags, run_main  # noqa: E402


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    return parse_flags(
        "Encodes and decodes a video with a VAE.", (ReconstructOptions, RecVideoOptions, DeviceOptions), argv
    )


def main() -> None:
    args = parse_args()
    from opensora import device
    from opensora.datasets.media import check_video_suffix
    from opensora.models import get_vae
    from opensora.pipelines.reconstruct import Clip, Reconstructor, read_clip, reconstruct_video

    clip = Clip(args.num_frames, args.sample_rate, args.height, args.width)
    clip.check(args.ae)
    check_video_suffix(args.rec_path)
    video = read_clip(args.video_path, clip, args.ae)
    dev = device.setup(args)
    vae = get_vae(args.ae, args.ae_path, dev.dtype, args.ms_checkpoint)
    vae.enable_tiling(args.enable_tiling)
    reconstruct = Reconstructor(vae, dev.dtype)
    scores = reconstruct_video(reconstruct, video, args.rec_path, args.fps, args.grid)
    print(f"encode {reconstruct.encode_seconds:.2f} s, decode {reconstruct.decode_seconds:.2f} s")
    print(f"PSNR {scores['psnr']:.2f} dB, SSIM {scores['ssim']:.4f} (decoded uint8 frames against the input's)")
    print(args.rec_path)


if __name__ == "__main__":
    run_main(main)
