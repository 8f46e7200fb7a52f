"""The flags of train_causalvae.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Optional

from opensora import device
from opensora.datasets.vae import VAEDataOptions
from opensora.errors import UserError
from opensora.train.adamw import AdamW
from opensora.train.ema import EMA
from opensora.train.trainer import TrainerOptions
from opensora.train.vae import VAETrainOptions
from opensora.train.vae_loss import DISC_LOSSES, LOSS_TYPES, VAELossOptions
from opensora.utils.cli import CommandParser, parse_with_config, pick, str2bool

EVAL_STEPS = 1000  # the published interval between validations


def add_arguments(parser: argparse.ArgumentParser) -> None:
    TrainerOptions.add_arguments(parser)
    parser.set_defaults(start_learning_rate=1e-5, checkpointing_steps=1000)
    _add_model(parser.add_argument_group("model"))
    _add_data(parser.add_argument_group("data"))
    _add_losses(parser.add_argument_group("losses"))
    _add_optimizer(parser.add_argument_group("optimizer"))
    device.add_arguments(parser)


def _switch(group, name: str, default: bool, **more) -> None:
    group.add_argument(name, type=str2bool, nargs="?", const=True, default=default, **more)


def _add_model(group) -> None:
    group.add_argument("--exp_name", help="a folder of this name in --output_dir")
    group.add_argument("--model_name", choices=("WFVAE",), default="WFVAE", help="class of the autoencoder")
    group.add_argument(
        "--model_config", help="json with the model's settings; default: those of the pretrained weights"
    )
    group.add_argument("--pretrained_model_name_or_path", help="weights to start from: folder or file")
    _switch(group, "--freeze_encoder", False, help="train the decoder alone")


def _add_data(group) -> None:
    group.add_argument("--video_path", required=True, help="folder of videos")
    group.add_argument("--data_file_path", help="csv with the videos to take; default: all in the folder")
    group.add_argument("--video_column", default="video", help="the csv's column of paths")
    group.add_argument("--video_num_frames", "--num_frames", type=int, default=17, help="of a clip: 4n+1")
    group.add_argument("--resolution", type=int, default=256, help="height and width, a multiple of 8")
    group.add_argument("--sample_rate", type=int, default=2, help="takes every n-th frame")
    _switch(group, "--dynamic_sample", False, help="draws that rate anew for each clip, from 1 up")
    group.add_argument("--cache_dir", default="./cache_dir", help="for the list of broken videos")
    group.add_argument("--train_batch_size", "--batch_size", type=int, default=1, help="of one process")
    group.add_argument(
        "--dataloader_num_workers", "--dataset_num_worker", type=int, default=4, help="processes that read videos"
    )
    group.add_argument("--eval_video_path", help="folder of held-out videos, for --validate")
    group.add_argument("--eval_data_file_path", help="csv with those to take")
    group.add_argument("--eval_num_frames", type=int, default=17, help="frames of a held-out clip: 4n+1")
    group.add_argument("--eval_resolution", type=int, default=256, help="height and width of held-out clips")
    group.add_argument("--eval_sample_rate", type=int, default=1, help="takes every n-th frame of held-out videos")
    group.add_argument("--eval_subset_size", type=int, default=100, help="videos measured at most")
    group.add_argument("--eval_num_video_log", type=int, default=2, help="videos shown in TensorBoard")
    group.add_argument("--eval_lpips", metavar="FILE", help="weights of LPIPS with AlexNet: measure that too")


def _add_losses(group) -> None:
    group.add_argument(
        "--loss_type",
        choices=tuple(LOSS_TYPES),
        default="l1",
        help="reconstruction loss: l1 absolute, l2 squared error",
    )
    group.add_argument("--kl_weight", type=float, default=1e-6, help="weight of the KL divergence")
    group.add_argument(
        "--perceptual_weight",
        type=float,
        default=0.0,
        help="weight of the LPIPS loss, which needs --lpips_path; published: 0, in stage 3 0.1",
    )
    group.add_argument("--lpips_path", default="pretrained/lpips_vgg-426bf45c.ckpt", help="its weights, with VGG")
    group.add_argument(
        "--logvar_init", type=float, default=0.0, help="log variance of the reconstruction loss, a constant"
    )
    _switch(group, "--wavelet_loss", False, help="compare the wavelet levels of encoder and decoder too")
    group.add_argument("--wavelet_weight", type=float, default=0.1, help="weight of the wavelet loss")
    _switch(group, "--use_discriminator", False, help="train against a discriminator")
    group.add_argument("--disc_start", type=int, default=5, help="the step at which it begins")
    group.add_argument(
        "--disc_weight", type=float, default=0.5, help="weight of the adversarial loss, beside the adaptive one"
    )
    group.add_argument("--disc_loss", choices=tuple(DISC_LOSSES), default="hinge", help="loss of the discriminator")
    _switch(group, "--print_losses", False, help="log every part of the losses")


def _add_optimizer(group) -> None:
    group.add_argument("--optim", choices=("adamw",), default="adamw", help="optimizer")
    group.add_argument("--betas", type=float, nargs=2, default=(0.9, 0.999), help="decays of AdamW's moments")
    group.add_argument("--adam_epsilon", type=float, default=1e-8, help="added to the denominator of AdamW")
    group.add_argument(
        "--weight_decay", type=float, default=1e-4, help="of the autoencoder; the discriminator's is 0.01"
    )
    _switch(group, "--clip_grad", False, help="clip the autoencoder's gradient; the discriminator's always is, to 1")
    group.add_argument(
        "--max_grad_norm", type=float, default=1.0, help="largest norm of the gradient, with --clip_grad"
    )
    group.add_argument("--gradient_accumulation_steps", type=int, default=1, help="batches of each optimizer step")
    group.add_argument("--init_loss_scale", type=float, default=65536.0, help="in fp16")
    _switch(group, "--use_ema", False, help="keep an exponential moving average of the weights")
    group.add_argument("--ema_decay", type=float, default=0.999, help="decay of the moving average per step")
    group.add_argument(
        "--zero_stage",
        type=int,
        choices=(0, 1, 2),
        default=0,
        help="1 shards optimizer states over the processes, 2 gradients too",
    )


def parse_options(argv: Optional[Sequence[str]] = None) -> tuple[TrainerOptions, VAETrainOptions, argparse.Namespace]:
    """Raises UserError for flags that contradict."""
    parser = CommandParser(description="Trains WFVAE on videos.")
    add_arguments(parser)
    args = parse_with_config(parser, argv)
    if args.validate and args.eval_video_path is None:
        raise UserError("--validate needs --eval_video_path")
    if args.val_interval is None and args.val_interval_steps is None:
        args.val_interval_steps = EVAL_STEPS
    data = pick(VAEDataOptions, args, num_frames=args.video_num_frames)
    val_data = (
        replace(
            data,
            video_path=args.eval_video_path,
            data_file_path=args.eval_data_file_path,
            num_frames=args.eval_num_frames,
            resolution=args.eval_resolution,
            sample_rate=args.eval_sample_rate,
            dynamic_sample=False,
        )
        if args.validate
        else None
    )
    beta1, beta2 = args.betas
    adamw = AdamW(beta1, beta2, args.adam_epsilon, args.weight_decay)
    options = pick(
        VAETrainOptions,
        args,
        data=data,
        val_data=val_data,
        loss=pick(VAELossOptions, args),
        adamw=adamw,
        disc_adamw=replace(adamw, adam_weight_decay=1e-2),
        ema=EMA(args.ema_decay, warm_up=False) if args.use_ema else None,
        max_grad_norm=args.max_grad_norm if args.clip_grad else None,
    )
    output_dir = str(Path(args.output_dir) / args.exp_name) if args.exp_name else args.output_dir
    return pick(TrainerOptions, args, output_dir=output_dir), options, args
