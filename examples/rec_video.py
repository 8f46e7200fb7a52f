"""Reconstructs a video with a VAE and says how close it came.

python examples/rec_video.py --ae WFVAEModel_D8_4x8x8 --ae_path weights/vae --video_path clip.mp4 --rec_path rec.mp4
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a fresh clone

from opensora.utils.supervision import supervise  # noqa: E402

if __name__ == "__main__":
    supervise()  # under msrun, before MindSpore is imported

from opensora import device  # noqa: E402
from opensora.datasets.media import check_video_suffix  # noqa: E402
from opensora.models import get_vae  # noqa: E402
from opensora.pipelines.reconstruct import ClipSpec, Reconstructor, read_clip, reconstruct_video  # noqa: E402
from opensora.utils.cli import CommandParser, run_main  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = CommandParser(description="Video -> VAE -> video.")
    parser.add_argument("--ae", default="WFVAEModel_D8_4x8x8", help="name of the VAE")
    parser.add_argument("--ae_path", required=True, help="folder with config.json and weights")
    parser.add_argument("--ms_checkpoint", help="weights of this file instead of those in --ae_path")
    parser.add_argument("--video_path", required=True, help="the video to reconstruct")
    parser.add_argument("--rec_path", required=True, help="where the reconstruction goes (.mp4, .mkv, .gif ...)")
    parser.add_argument("--num_frames", type=int, default=65, help="4n+1")
    parser.add_argument("--sample_rate", type=int, default=1, help="take every n-th frame")
    parser.add_argument("--height", type=int, default=336, help="of the result in pixels")
    parser.add_argument("--width", type=int, default=336, help="of the result in pixels")
    parser.add_argument("--fps", type=float, default=30, help="of the file written")
    parser.add_argument("--enable_tiling", action="store_true", help="chunks along time: memory stays constant")
    parser.add_argument("--grid", action="store_true", help="write original and reconstruction side by side")
    device.add_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    clip = ClipSpec(args.num_frames, args.sample_rate, args.height, args.width)
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
