"""opensora reconstruct video, image, folder: encode and decode with a VAE, and measure the difference."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional

from opensora.config.command_line import parse_flags
from opensora.config.commands import RecFolderOptions, RecImageOptions, ReconstructOptions, RecVideoOptions
from opensora.config.device import DeviceOptions
from opensora.errors import UserError
from opensora.utils.folder_lock import exclusive_folder

if TYPE_CHECKING:
    from opensora.device import Device
    from opensora.pipelines.reconstruct import ClipSpec, Reconstructor
    from opensora.pipelines.reconstruct_folder import ReconstructionTask


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Reconstructs what the flags name: --image_path, --real_video_dir, or else --video_path."""
    given = {argument.split("=")[0] for argument in (sys.argv[1:] if argv is None else argv)}
    command = image if "--image_path" in given else folder if "--real_video_dir" in given else video
    command(argv)


def video(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_video_args(argv)
    from opensora import device
    from opensora.datasets.media import check_video_suffix
    from opensora.pipelines.reconstruct import ClipSpec, read_clip, reconstruct_video

    clip = ClipSpec(args.num_frames, args.sample_rate, args.height, args.width)
    clip.check(args.ae)
    check_video_suffix(args.rec_path)
    frames = read_clip(args.video_path, clip, args.ae)
    reconstruct = _reconstructor(args, device.setup(args))
    scores = reconstruct_video(reconstruct, frames, args.rec_path, args.fps, args.grid)
    _print_result(reconstruct, scores, args.rec_path, "frames")


def image(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_image_args(argv)
    from opensora import device
    from opensora.datasets.media import check_image_suffix
    from opensora.pipelines.reconstruct import read_image_clip, reconstruct_image

    check_image_suffix(args.rec_path)
    pixels = read_image_clip(args.image_path, args.short_size, args.ae)
    reconstruct = _reconstructor(args, device.setup(args))
    scores = reconstruct_image(reconstruct, pixels, args.rec_path)
    _print_result(reconstruct, scores, args.rec_path, "pixels")


def folder(argv: Optional[Sequence[str]] = None) -> None:
    """Skips damaged and too short videos and lists them at the end; a second run makes only what is missing."""
    args = parse_folder_args(argv)
    from opensora import device
    from opensora.parallel.collectives import barrier
    from opensora.pipelines.reconstruct import ClipSpec
    from opensora.pipelines.reconstruct_folder import plan_tasks

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


def _reconstruct_tasks(args: argparse.Namespace, clip: ClipSpec, tasks: list[ReconstructionTask], dev: Device) -> None:
    """The tasks of this process, and their table."""
    from opensora.eval.report import print_skipped, print_table
    from opensora.pipelines.reconstruct_folder import Results, reconstruct_folder, settings_of

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


def _reconstructor(args: argparse.Namespace, dev: Device) -> Reconstructor:
    from opensora.models import get_vae
    from opensora.pipelines.reconstruct import Reconstructor

    vae = get_vae(args.ae, args.ae_path, dev.vae_dtype, args.ms_checkpoint)
    if "enable_tiling" in args:
        vae.enable_tiling(args.enable_tiling)
    return Reconstructor(vae)


def _print_result(reconstruct: Reconstructor, scores: dict[str, float], path: str, unit: str) -> None:
    print(f"encode {reconstruct.encode_seconds:.2f} s, decode {reconstruct.decode_seconds:.2f} s")
    print(f"PSNR {scores['psnr']:.2f} dB, SSIM {scores['ssim']:.4f} (decoded uint8 {unit} against the input's)")
    print(path)


def parse_video_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    return parse_flags(
        "Encodes and decodes a video with a VAE.", (ReconstructOptions, RecVideoOptions, DeviceOptions), argv
    )


def parse_image_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    return parse_flags(
        "Encodes and decodes an image with a VAE.", (ReconstructOptions, RecImageOptions, DeviceOptions), argv
    )


def parse_folder_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    return parse_flags(
        "Encodes and decodes a folder of videos with a VAE, with PSNR and SSIM.",
        (ReconstructOptions, RecFolderOptions, DeviceOptions),
        argv,
    )
