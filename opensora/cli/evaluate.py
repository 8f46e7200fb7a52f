"""opensora evaluate: compares a folder of generated videos with the real ones of the same file names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Optional

from opensora.config.command_line import parse_flags
from opensora.config.commands import EvaluateOptions
from opensora.config.options import from_mapping

if TYPE_CHECKING:
    from opensora.eval.pairs import Metric


def parse_args(argv: Optional[Sequence[str]] = None) -> EvaluateOptions:
    args = parse_flags("PSNR (dB), SSIM or LPIPS of generated videos, frame by frame.", (EvaluateOptions,), argv)
    return from_mapping(EvaluateOptions, vars(args))


def get_metric(args: EvaluateOptions) -> Metric:
    from opensora.metrics import lpips, psnr, ssim

    if args.metric == "lpips":
        from opensora.models.lpips import LPIPS

        return partial(lpips, network=LPIPS.load(args.lpips_path, net="alex"))
    return {"psnr": psnr, "ssim": ssim}[args.metric]


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_args(argv)
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
