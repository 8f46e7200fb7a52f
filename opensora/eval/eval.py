"""Compares a folder of generated videos with the real ones of the same file names.

python opensora/eval/eval.py --metric psnr --real_video_dir A --generated_video_dir B
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a fresh clone

from opensora.config.commands import EvaluateOptions  # noqa: E402
from opensora.config.options import from_mapping  # noqa: E402
from opensora.utils.cli import parse_flags, run_main  # noqa: E402

if TYPE_CHECKING:
    from opensora.eval.pairs import Metric


def parse_args(argv: Optional[Sequence[str]] = None) -> EvaluateOptions:
    args = parse_flags("PSNR (dB), SSIM or LPIPS of generated videos, frame by frame.", (EvaluateOptions,), argv)
    return from_mapping(EvaluateOptions, vars(args))


def get_metric(args: EvaluateOptions) -> Metric:
    if args.metric == "lpips":
        from opensora.metrics.perceptual import SpatialLPIPS  # takes seconds to import

        return SpatialLPIPS(args.lpips_path)
    from opensora.metrics.peak_signal import psnr
    from opensora.metrics.structural import ssim

    return {"psnr": psnr, "ssim": ssim}[args.metric]


def main() -> None:
    args = parse_args()
    from opensora.eval.pairs import Sampling, measure_all, pair_videos
    from opensora.eval.report import print_skipped, print_table

    sampling = Sampling(args.num_frames, args.sample_rate, args.resolution, args.crop_size, args.batch_size)
    pairs, unpaired = pair_videos(args.real_video_dir, args.generated_video_dir)
    pairs = pairs[: args.subset_size or None]
    values, skipped = measure_all(get_metric(args), pairs, sampling, args.num_workers)
    print_table({name: {args.metric: frames.mean()} for name, frames in values.items()})
    print_skipped(skipped)
    if unpaired:
        print(f"unpaired {len(unpaired)}: {', '.join(unpaired)}")


if __name__ == "__main__":
    run_main(main)
