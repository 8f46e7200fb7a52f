"""The flags of the training commands of the diffusion transformer."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Optional

from opensora import device
from opensora.datasets.t2v.options import T2VDataOptions
from opensora.errors import UserError
from opensora.models.dit.config import PRESETS
from opensora.models.vaes import VAES
from opensora.schedulers import PREDICTION_TYPES
from opensora.train.adamw import AdamW
from opensora.train.ema import EMA
from opensora.train.objective import WEIGHTING_SCHEMES, ObjectiveOptions
from opensora.train.t2v import T2VTrainOptions
from opensora.train.trainer import TrainerOptions
from opensora.utils.cli import CommandParser, parse_with_config, pick, str2bool

PARALLEL_MODES = ("data", "optim", "zero")


def add_arguments(parser: argparse.ArgumentParser, datasets: tuple = ("t2v",)) -> None:
    TrainerOptions.add_arguments(parser)
    _add_model(parser.add_argument_group("model"))
    _add_data(parser.add_argument_group("data"), datasets)
    _add_objective(parser.add_argument_group("objective"))
    _add_optimizer(parser.add_argument_group("optimizer"))
    _add_parallel(parser.add_argument_group("parallel"))
    device.add_arguments(parser)


def _add_model(group) -> None:
    group.add_argument("--model", help=f"{', '.join(PRESETS)}, or a folder with a config.json; default: --pretrained's")
    group.add_argument(
        "--pretrained",
        "--pretrained_transformer_model_path",
        help="weights to start from: a folder, a .safetensors or a torch file",
    )
    group.add_argument("--sparse1d", type=str2bool, nargs="?", const=True, default=False, help="skiparse attention")
    group.add_argument(
        "--sparse_n",
        type=int,
        default=2,
        help="sparsity of skiparse attention: each token attends to one n-th of the sequence",
    )
    for axis in "thw":
        group.add_argument(f"--interpolation_scale_{axis}", type=float, default=1.0, help="of the rotary positions")
    group.add_argument("--ae", choices=tuple(VAES), default="WFVAEModel_D8_4x8x8", help="name of the autoencoder")
    group.add_argument("--ae_path", required=True, help="folder of the autoencoder")
    group.add_argument("--enable_tiling", action="store_true", help="encode in chunks along time")
    group.add_argument("--vae_fp32", action="store_true", help="the autoencoder runs float32 whatever the precision")
    group.add_argument("--text_encoder_name_1", help="folder of mT5; not needed with --text_embed_cache")


def _add_data(group, datasets: tuple) -> None:
    group.add_argument("--dataset", choices=datasets, default=datasets[0], help="kind of data set")
    group.add_argument("--data", required=True, help="text file with a line `root,annotation.json` for each source")
    group.add_argument("--num_frames", type=int, default=65, help="of videos: 4n+1; 1: images only")
    group.add_argument(
        "--max_height", type=int, default=320, help="height of the frames with --force_resolution, in pixels"
    )
    group.add_argument(
        "--max_width", type=int, default=240, help="width of the frames with --force_resolution, in pixels"
    )
    group.add_argument("--force_resolution", action="store_true", help="all samples are max_height x max_width")
    group.add_argument("--max_hxw", type=int, help="most pixels of a frame, without --force_resolution")
    group.add_argument("--min_hxw", type=int, help="default: a quarter of --max_hxw")
    group.add_argument("--hw_stride", type=int, default=32, help="sides are multiples of it")
    group.add_argument("--train_fps", type=int, default=24, help="frame rate that videos are resampled to")
    group.add_argument(
        "--speed_factor", type=float, default=1.0, help="largest speed-up of videos that have frames to spare; 1: none"
    )
    group.add_argument(
        "--drop_short_ratio",
        type=float,
        default=1.0,
        help="probability of leaving out a video with fewer than --num_frames frames",
    )
    group.add_argument("--group_data", action="store_true", help="batches of one size")
    group.add_argument("--cfg", type=float, default=0.1, help="probability that a caption is left out")
    group.add_argument("--model_max_length", type=int, default=512, help="tokens of a caption")
    group.add_argument(
        "--text_embed_cache",
        type=str2bool,
        nargs="?",
        const=True,
        default=False,
        help="embeddings made by sample_text_embed.py, named in --data, instead of a text encoder",
    )
    group.add_argument("--cache_dir", default="./cache_dir", help="for the index of the data and broken samples")
    group.add_argument("--train_batch_size", type=int, default=1, help="of one process")
    group.add_argument("--dataloader_num_workers", type=int, default=4, help="processes that read data")
    group.add_argument("--val_data", help="held-out data for --validate, as --data")
    group.add_argument("--val_batch_size", type=int, default=1, help="held-out samples of one process at a time")


def _add_objective(group) -> None:
    group.add_argument("--prediction_type", choices=PREDICTION_TYPES, default="epsilon", help="what the model predicts")
    group.add_argument("--snr_gamma", type=float, help="min-SNR weighting, 5.0 is usual; default: none")
    group.add_argument(
        "--noise_offset", type=float, default=0.0, help="strength of the noise shared by all positions of a channel"
    )
    group.add_argument(
        "--rescale_betas_zero_snr", action="store_true", help="noise schedule with zero signal at the last step"
    )
    group.add_argument("--cogvideox_scheduler", action="store_true", help="noise schedule of CogVideoX")
    group.add_argument("--v1_5_scheduler", action="store_true", help="noise schedule of Stable Diffusion 1.5")
    group.add_argument("--rf_scheduler", action="store_true", help="rectified flow")
    group.add_argument(
        "--weighting_scheme",
        choices=WEIGHTING_SCHEMES,
        default="logit_normal",
        help="how rectified flow draws and weights timesteps",
    )
    group.add_argument("--logit_mean", type=float, default=0.0, help="mean of logit_normal")
    group.add_argument("--logit_std", type=float, default=1.0, help="standard deviation of logit_normal")
    group.add_argument("--mode_scale", type=float, default=1.29, help="scale of the weighting scheme mode")


def _add_optimizer(group) -> None:
    group.add_argument("--adam_beta1", type=float, default=0.9, help="decay of AdamW's first moment")
    group.add_argument("--adam_beta2", type=float, default=0.999, help="decay of AdamW's second moment")
    group.add_argument("--adam_epsilon", type=float, default=1e-15, help="added to the denominator of AdamW")
    group.add_argument("--adam_weight_decay", type=float, default=1e-2, help="weight decay of AdamW")
    group.add_argument(
        "--clip_grad",
        type=str2bool,
        nargs="?",
        const=True,
        default=True,
        help="clip the norm of the gradient to --max_grad_norm",
    )
    group.add_argument("--max_grad_norm", type=float, default=1.0, help="largest norm of the gradient")
    group.add_argument("--gradient_accumulation_steps", type=int, default=1, help="batches of each optimizer step")
    group.add_argument(
        "--gradient_checkpointing",
        type=str2bool,
        nargs="?",
        const=True,
        default=False,
        help="less memory: blocks run again on the way back",
    )
    group.add_argument(
        "--use_ema",
        type=str2bool,
        nargs="?",
        const=True,
        default=False,
        help="keep an exponential moving average of the weights",
    )
    group.add_argument("--ema_decay", type=float, default=0.9999, help="decay of the moving average per step")
    group.add_argument("--ema_start_step", type=int, default=0, help="optimizer step at which the average starts")


def _add_parallel(group) -> None:
    group.add_argument(
        "--parallel_mode",
        choices=PARALLEL_MODES,
        help="data: all whole on each process; optim: optimizer states divided; zero: by --zero_stage",
    )
    group.add_argument(
        "--zero_stage",
        type=int,
        choices=(0, 1, 2, 3),
        help="of --parallel_mode zero: 1 shards optimizer states, 2 gradients too, 3 weights too",
    )
    group.add_argument("--sp_size", type=int, default=1, help="processes that share a video")
    group.add_argument("--train_sp_batch_size", type=int, default=1, help="samples that they share at a time")


def zero_stage(parallel_mode: Optional[str], stage: Optional[int]) -> int:
    """Raises UserError where --zero_stage is given to a mode that has none, or missing where it is needed."""
    if parallel_mode in (None, "zero"):
        if stage is None and parallel_mode == "zero":
            raise UserError("--parallel_mode zero needs --zero_stage 1, 2 or 3")
        return stage or 0
    if stage is not None:
        raise UserError(f"--zero_stage {stage} is for --parallel_mode zero, not {parallel_mode}")
    return 1 if parallel_mode == "optim" else 0


def model_changes(args: argparse.Namespace) -> dict[str, Any]:
    """Keys of the model's config.json that flags set."""
    return {
        "sparse1d": args.sparse1d,
        "sparse_n": args.sparse_n,
        "prediction_type": None if args.rf_scheduler else args.prediction_type,
        **{f"interpolation_scale_{axis}": getattr(args, f"interpolation_scale_{axis}") for axis in "thw"},
    }


def parse_options(argv: Optional[Sequence[str]] = None) -> tuple[TrainerOptions, T2VTrainOptions, argparse.Namespace]:
    """Raises UserError for flags that contradict."""
    parser = CommandParser(description="Trains the diffusion transformer on videos and images with captions.")
    add_arguments(parser)
    args = parse_with_config(parser, argv)
    return pick(TrainerOptions, args), training_options(T2VTrainOptions, args, pick(T2VDataOptions, args)), args


def training_options(options: type, args: argparse.Namespace, data: T2VDataOptions) -> T2VTrainOptions:
    """`options`, which are those of text-to-video training or extend them."""
    if args.validate and args.val_data is None:
        raise UserError("--validate needs --val_data")
    return pick(
        options,
        args,
        data=data,
        objective=pick(ObjectiveOptions, args),
        model_changes=model_changes(args),
        val_data=replace(data, data=args.val_data, cfg=0.0, total_batch_size=0) if args.validate else None,
        adamw=pick(AdamW, args),
        zero_stage=zero_stage(args.parallel_mode, args.zero_stage),
        ema=pick(EMA, args) if args.use_ema else None,
        max_grad_norm=args.max_grad_norm if args.clip_grad else None,
    )
