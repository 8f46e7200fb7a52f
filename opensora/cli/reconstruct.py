"""opensora reconstruct video, image, folder: encode and decode with a VAE, and measure the difference."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from opensora import device
from opensora.datasets.media import check_image_suffix, check_video_suffix
from opensora.errors import UserError
from opensora.eval.report import print_skipped, print_table
from opensora.models import get_vae
from opensora.parallel.collectives import barrier
from opensora.pipelines.reconstruct import (
    ClipSpec,
    Reconstructor,
    read_clip,
    read_image_clip,
    reconstruct_image,
    reconstruct_video,
)
from opensora.pipelines.reconstruct_folder import (
    ReconstructionTask,
    Results,
    plan_tasks,
    reconstruct_folder,
    settings_of,
)
from opensora.utils.cli import CommandParser
from opensora.utils.folder_lock import exclusive_folder

TILING_HELP = "chunks along time: memory stays constant"


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Reconstructs what the flags name: --image_path, --real_video_dir, or else --video_path."""
    given = {argument.split("=")[0] for argument in (sys.argv[1:] if argv is None else argv)}
    command = image if "--image_path" in given else folder if "--real_video_dir" in given else video
    command(argv)


def video(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_video_args(argv)
    clip = ClipSpec(args.num_frames, args.sample_rate, args.height, args.width)
    clip.check(args.ae)
    check_video_suffix(args.rec_path)
    frames = read_clip(args.video_path, clip, args.ae)
    reconstruct = _reconstructor(args, device.setup(args))
    scores = reconstruct_video(reconstruct, frames, args.rec_path, args.fps, args.grid)
    _print_result(reconstruct, scores, args.rec_path, "frames")


def image(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_image_args(argv)
    check_image_suffix(args.rec_path)
    pixels = read_image_clip(args.image_path, args.short_size, args.ae)
    reconstruct = _reconstructor(args, device.setup(args))
    scores = reconstruct_image(reconstruct, pixels, args.rec_path)
    _print_result(reconstruct, scores, args.rec_path, "pixels")


def folder(argv: Optional[Sequence[str]] = None) -> None:
    """Skips damaged and too short videos and lists them at the end; a second run makes only what is missing."""
    args = parse_folder_args(argv)
    clip = ClipSpec(args.num_frames, args.sample_rate, args.height, args.width, args.resolution, args.crop_size)
    clip.check(args.ae)
    tasks = plan_tasks(
        args.real_video_dir, args.generated_video_dir, args.data_file_path, args.output_origin, args.subset_size
    )
    dev = device.setup(args)
    with exclusive_folder(args.generated_video_dir, dev.is_main):
        barrier(dev.world_size)  # no process works before the first has the folder
        _reconstruct_tasks(args, clip, tasks[dev.rank :: dev.world_size], dev)
        barrier(dev.world_size)  # which it keeps until all are done


def _reconstruct_tasks(
    args: argparse.Namespace, clip: ClipSpec, tasks: list[ReconstructionTask], dev: device.Device
) -> None:
    """The tasks of this process, and their table."""
    settings = settings_of(clip, args.ae, args.ms_checkpoint or args.ae_path)
    results = Results(Path(args.generated_video_dir), settings, dev.rank, dev.world_size)
    fps = args.sample_fps / args.sample_rate
    skipped = reconstruct_folder(
        _reconstructor(args, dev), tasks, clip, args.ae, results, fps, args.batch_size, args.num_workers
    )
    table = results.table(tasks)
    if table:
        print_table(table)
    print_skipped(skipped)
    if tasks and not table:
        raise UserError(f"none of {len(tasks)} videos could be reconstructed")


def _reconstructor(args: argparse.Namespace, dev: device.Device) -> Reconstructor:
    vae = get_vae(args.ae, args.ae_path, dev.dtype, args.ms_checkpoint)
    if "enable_tiling" in args:
        vae.enable_tiling(args.enable_tiling)
    return Reconstructor(vae, dev.dtype)


def _print_result(reconstruct: Reconstructor, scores: dict[str, float], path: str, unit: str) -> None:
    print(f"encode {reconstruct.encode_seconds:.2f} s, decode {reconstruct.decode_seconds:.2f} s")
    print(f"PSNR {scores['psnr']:.2f} dB, SSIM {scores['ssim']:.4f} (decoded uint8 {unit} against the input's)")
    print(path)


def parse_video_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = _parser("Video -> VAE -> video.")
    parser.add_argument("--video_path", required=True, help="the video to reconstruct")
    parser.add_argument("--rec_path", required=True, help="where the reconstruction goes (.mp4, .mkv, .gif ...)")
    parser.add_argument("--num_frames", type=int, default=65, help="4n+1")
    parser.add_argument("--sample_rate", type=int, default=1, help="take every n-th frame")
    parser.add_argument("--height", type=int, default=336, help="of the result in pixels")
    parser.add_argument("--width", type=int, default=336, help="of the result in pixels")
    parser.add_argument("--fps", type=float, default=30, help="of the file written")
    parser.add_argument("--enable_tiling", action="store_true", help=TILING_HELP)
    parser.add_argument("--grid", action="store_true", help="write original and reconstruction side by side")
    return parser.parse_args(argv)


def parse_image_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = _parser("Image -> VAE -> image.")
    parser.add_argument("--image_path", required=True, help="the image to reconstruct")
    parser.add_argument("--rec_path", required=True, help="where the reconstruction goes (.png, .jpg ...)")
    parser.add_argument("--short_size", type=int, default=336, help="pixels of the shorter side")
    return parser.parse_args(argv)


def parse_folder_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    parser = _parser("Videos -> VAE -> videos, with PSNR and SSIM.")
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
    parser.add_argument("--enable_tiling", action="store_true", help=TILING_HELP)
    return parser.parse_args(argv)


def _parser(description: str) -> argparse.ArgumentParser:
    parser = CommandParser(description=description)
    parser.add_argument("--ae", default="WFVAEModel_D8_4x8x8", help="name of the VAE")
    parser.add_argument("--ae_path", required=True, help="folder with config.json and weights")
    parser.add_argument("--ms_checkpoint", help="weights of this file instead of those in --ae_path")
    device.add_arguments(parser)
    return parser
