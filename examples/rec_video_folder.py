"""Reconstructs a folder of videos with a VAE and prints a table of PSNR and SSIM.

Damaged and too short videos are skipped and listed at the end; a second run does only what is missing.

    python examples/rec_video_folder.py --ae WFVAEModel_D8_4x8x8 --ae_path weights/vae \
        --real_video_dir videos --generated_video_dir rec
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Optional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a fresh clone


from opensora.errors import UserError  # noqa: E402
from opensora.utils.supervision import supervise  # noqa: E402

if __name__ == "__main__":
    supervise()  # under msrun, before MindSpore is imported

from opensora.config.commands import RecFolderOptions, ReconstructOptions  # noqa: E402
from opensora.config.device import DeviceOptions  # noqa: E402
from opensora.utils.cli import parse_flags, run_main  # noqa: E402
from opensora.utils.folder_lock import exclusive_folder  # noqa: E402

if TYPE_CHECKING:
    from opensora.device import Device
    from opensora.pipelines.reconstruct import Clip
    from opensora.pipelines.reconstruct_folder import Job


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    return parse_flags(
        "Encodes and decodes a folder of videos with a VAE, with PSNR and SSIM.",
        (ReconstructOptions, RecFolderOptions, DeviceOptions),
        argv,
    )


def main() -> None:
    args = parse_args()
    from opensora import device
    from opensora.parallel.collectives import barrier
    from opensora.pipelines.reconstruct import Clip
    from opensora.pipelines.reconstruct_folder import plan_jobs

    clip = Clip(args.num_frames, args.sample_rate, args.height, args.width, args.resolution, args.crop_size)
    clip.check(args.ae)
    jobs = plan_jobs(
        args.real_video_dir, args.generated_video_dir, args.data_file_path, args.output_origin, args.subset_size
    )
    dev = device.setup(args)
    with exclusive_folder(args.generated_video_dir, dev.is_main):
        barrier(dev.world_size)  # no process works before the first has the folder
        reconstruct(args, clip, jobs, dev)
        barrier(dev.world_size)  # which it keeps until all are done


def reconstruct(args: argparse.Namespace, clip: Clip, jobs: list[Job], dev: Device) -> None:
    """Runs the jobs of this process and prints their table."""
    from opensora.eval.report import print_skipped, print_table
    from opensora.models import get_vae
    from opensora.pipelines.reconstruct import Reconstructor
    from opensora.pipelines.reconstruct_folder import Results, reconstruct_folder, settings_of

    jobs = jobs[dev.rank :: dev.world_size]
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
        jobs,
        clip,
        args.ae,
        results,
        args.sample_fps / args.sample_rate,
        args.batch_size,
        args.num_workers,
    )
    table = results.table(jobs)
    if table:
        print_table(table)
    print_skipped(skipped)
    if jobs and not table:
        raise UserError(f"none of {len(jobs)} videos could be reconstructed")


if __name__ == "__main__":
    run_main(main)
