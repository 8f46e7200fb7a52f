"""opensora evaluate: compares a folder of generated videos with the real ones of the same file names."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Optional

from opensora.eval.pairs import Metric, Sampling, measure_all, pair_videos
from opensora.eval.report import print_skipped, print_table
from opensora.metrics import psnr, ssim
from opensora.utils.cli import CommandParser

METRICS = ("psnr", "ssim", "lpips")


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = CommandParser(description="PSNR (dB), SSIM or LPIPS of generated videos, frame by frame.")
    parser.add_argument("--metric", choices=METRICS, required=True, help="what is measured")
    parser.add_argument("--real_video_dir", required=True, help="folder of the real videos")
    parser.add_argument(
        "--generated_video_dir", required=True, help="folder of the generated videos, with the names of the real ones"
    )
    parser.add_argument("--num_frames", type=int, help="frames compared per video; default: all of the generated one")
    parser.add_argument("--sample_rate", type=int, default=1, help="take every n-th frame of the real videos")
    parser.add_argument("--resolution", type=int, help="resize the shorter side to this; default: leave sizes alone")
    parser.add_argument("--crop_size", type=int, help="then cut a square of this size out of the middle")
    parser.add_argument("--subset_size", type=int, default=0, help="compare only the first n pairs; 0: all")
    parser.add_argument("--batch_size", type=int, default=16, help="frames of a video held in memory at a time")
    parser.add_argument("--num_workers", type=int, default=2, help="pairs compared at the same time")
    parser.add_argument(
        "--lpips_path",
        default="pretrained/lpips_alex.pth",
        help="weights of LPIPS with AlexNet, as the PyTorch package lpips has them",
    )
    return parser.parse_args(argv)


def get_metric(args: argparse.Namespace) -> Metric:
    if args.metric == "lpips":
        from opensora.metrics import lpips  # takes seconds to import
        from opensora.models.lpips import LPIPS

        return partial(lpips, network=LPIPS.load(args.lpips_path, net="alex"))
    return {"psnr": psnr, "ssim": ssim}[args.metric]


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
    sampling = Sampling(args.num_frames, args.sample_rate, args.resolution, args.crop_size, args.batch_size)
    pairs, unpaired = pair_videos(args.real_video_dir, args.generated_video_dir)
    pairs = pairs[: args.subset_size or None]
    values, skipped = measure_all(get_metric(args), pairs, sampling, args.num_workers)
    print_table({name: {args.metric: frames.mean()} for name, frames in values.items()})
    print_skipped(skipped)
    if unpaired:
        print(f"unpaired {len(unpaired)}: {', '.join(unpaired)}")
