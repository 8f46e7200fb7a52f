"""Reconstructs a folder of videos with a VAE and prints a table of PSNR and SSIM.

Damaged and too short videos are skipped and listed at the end; a second run does only what is missing.

    python examples/rec_video_folder.py --ae WFVAEModel_D8_4x8x8 --ae_path weights/vae \
        --real_video_dir videos --generated_video_dir rec
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a fresh clone


from opensora.errors import UserError  # noqa: E402
from opensora.process.supervision import supervise  # noqa: E402

if __name__ == "__main__":
    supervise()  # under msrun, before MindSpore is imported

from opensora import device  # noqa: E402
from opensora.eval.report import print_skipped, print_table  # noqa: E402
from opensora.models import get_vae  # noqa: E402
from opensora.parallel.collectives import barrier  # noqa: E402
from opensora.pipelines.reconstruct import ClipSpec, Reconstructor  # noqa: E402
from opensora.pipelines.reconstruct_folder import (
    ReconstructionTask,
    Results,
    plan_tasks,
    reconstruct_folder,
    settings_of,
)  # noqa: E402
from opensora.utils.cli import CommandParser, run_main  # noqa: E402
from opensora.utils.folder_lock import exclusive_folder  # noqa: E402


def parse_args() -> argparse.Namespace:
    parser = CommandParser(description="Videos -> VAE -> videos, with PSNR and SSIM.")
    parser.add_argument("--ae", default="WFVAEModel_D8_4x8x8", help="name of the VAE")
    parser.add_argument("--ae_path", required=True, help="folder with config.json and weights")
    parser.add_argument("--ms_checkpoint", help="weights of this file instead of those in --ae_path")
    parser.add_argument("--real_video_dir", required=True, help="folder of the videos to reconstruct")
    parser.add_argument("--data_file_path", help="csv with a column 'video': paths below --real_video_dir")
    parser.add_argument("--generated_video_dir", required=True, help="where the reconstructions go")
    parser.add_argument("--output_origin", action="store_true", help="also write the cut and resized input, to origin/")
    parser.add_argument("--num_frames", type=int, default=17, help="4n+1")
    parser.add_argument("--sample_rate", type=int, default=1, help="take every n-th frame")
    parser.add_argument(
        "--sample_fps",
        type=float,
        default=30,
        help="frames per second of the real videos; files are written at sample_fps / sample_rate",
    )
    parser.add_argument("--height", type=int, help="with --width: crop to this aspect and resize")
    parser.add_argument("--width", type=int, help="see --height")
    parser.add_argument("--resolution", type=int, default=336, help="otherwise: pixels of the shorter side")
    parser.add_argument("--crop_size", type=int, help="then a square of this size; default: multiples of 8")
    parser.add_argument("--subset_size", type=int, default=0, help="only the first n videos; 0: all")
    parser.add_argument("--batch_size", type=int, default=1, help="videos of one size that share a pass")
    parser.add_argument("--num_workers", type=int, default=2, help="videos read at the same time")
    parser.add_argument("--enable_tiling", action="store_true", help="chunks along time: memory stays constant")
    device.add_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    clip = ClipSpec(args.num_frames, args.sample_rate, args.height, args.width, args.resolution, args.crop_size)
    clip.check(args.ae)
    tasks = plan_tasks(
        args.real_video_dir, args.generated_video_dir, args.data_file_path, args.output_origin, args.subset_size
    )
    dev = device.setup(args)
    with exclusive_folder(args.generated_video_dir, dev.is_main):
        barrier(dev.world_size)  # no process works before the first has the folder
        reconstruct(args, clip, tasks, dev)
        barrier(dev.world_size)  # which it keeps until all are done


def reconstruct(args: argparse.Namespace, clip: ClipSpec, tasks: list[ReconstructionTask], dev: device.Device) -> None:
    """This process's part of the tasks, and their table."""
    tasks = tasks[dev.rank :: dev.world_size]
    results = Results(
        Path(args.generated_video_dir),
        settings_of(clip, args.ae, args.ms_checkpoint or args.ae_path),
        dev.rank,
        dev.world_size,
    )
    vae = get_vae(args.ae, args.ae_path, dev.dtype, args.ms_checkpoint)
    vae.enable_tiling(args.enable_tiling)
    skipped = reconstruct_folder(
        Reconstructor(vae, dev.dtype),
        tasks,
        clip,
        args.ae,
        results,
        args.sample_fps / args.sample_rate,
        args.batch_size,
        args.num_workers,
    )
    table = results.table(tasks)
    if table:
        print_table(table)
    print_skipped(skipped)
    if tasks and not table:
        raise UserError(f"none of {len(tasks)} videos could be reconstructed")


if __name__ == "__main__":
    run_main(main)
