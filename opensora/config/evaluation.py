"""The options of opensora evaluate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Optional

from opensora.config.options import check_at_least_one, option

PAIR_METRICS = ("psnr", "ssim", "lpips")  # of a generated and a real video
TEXT_METRICS = ("clipsim", "clip_score")  # of a generated video and its prompt
METRICS = (
    *PAIR_METRICS,
    "fvd",
    *TEXT_METRICS,
    "temporal_flickering",
    "motion_amount",
    "background_consistency",
    "subject_consistency",
    "aesthetic_quality",
)
FVD_PROTOCOLS = ("styleganv", "videogpt")

_networks = partial(option, None, group="networks")


@dataclass(frozen=True)
class EvaluateOptions:
    generated_video_dir: Sequence[str] = option(
        help="folders of generated videos; several, as those of checkpoints, are compared in one table"
    )
    real_video_dir: Optional[str] = option(
        None, "folder of real videos: with the same names for psnr, ssim and lpips, with any names for fvd"
    )
    metric: Optional[str] = option(None, "the only metric to compute, see --metrics", choices=METRICS)
    metrics: Sequence[str] = option(
        ("all",),
        "metrics to compute; all: those whose networks, prompts or real videos are given",
        choices=("all", *METRICS),
    )
    prompts: Optional[str] = option(
        None,
        "json file of an object with the prompt of each video's name, or text with a prompt per line for the videos "
        "sorted by name; default: those in the records that sample.py writes beside its videos",
    )
    output_dir: Optional[str] = option(
        None, "folder for the results of each video, which an interrupted run resumes, and for the report"
    )
    num_frames: Optional[int] = option(None, "frames measured per video; default: all of the generated one")
    sample_rate: int = option(1, "take every n-th frame of the real videos")
    resolution: Optional[int] = option(None, "psnr, ssim, lpips: resize the shorter side to this; default: no resizing")
    crop_size: Optional[int] = option(None, "then crop the center to a square of this size; default: no crop")
    subset_size: int = option(0, "measure only the first n videos; 0: all")
    batch_size: int = option(16, "frames of a pair of videos held in memory at a time")
    num_workers: int = option(2, "videos measured at the same time; the networks take turns")
    lpips_path: str = option(
        "pretrained/lpips_alex.pth",
        "weights of LPIPS with AlexNet, in the format of the PyTorch package lpips",
        group="networks",
    )
    i3d_path: Optional[str] = _networks(help="I3D for fvd: i3d_torchscript.pt or i3d_pretrained_400.pt")
    fvd_protocol: str = option(
        "styleganv", "protocol of fvd, see docs/evaluation.md", choices=FVD_PROTOCOLS, group="networks"
    )
    clip_path: Optional[str] = _networks(
        help="CLIP ViT-B/32: folder of transformers, or ViT-B-32.pt with the tokenizer's files beside it"
    )
    clip_large_path: Optional[str] = _networks(help="CLIP ViT-L/14 for aesthetic_quality, in the same forms")
    aesthetic_path: Optional[str] = _networks(help="LAION's linear head, sa_0_4_vit_l_14_linear.pth")
    dino_path: Optional[str] = _networks(help="DINO ViT-B/16, dino_vitbase16_pretrain.pth")

    def __post_init__(self):
        check_at_least_one(self, "num_frames", "sample_rate", "resolution", "crop_size", "batch_size")

    def wanted(self) -> tuple[str, ...]:
        """The names of the metrics, in the order of `METRICS`."""
        names = (self.metric,) if self.metric else self.metrics
        return METRICS if "all" in names else tuple(name for name in METRICS if name in names)

    @property
    def wants_all(self) -> bool:
        """Whether metrics that lack their input are left out; otherwise they are errors."""
        return self.metric is None and "all" in self.metrics
