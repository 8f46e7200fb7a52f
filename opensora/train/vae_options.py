"""The options of train_causalvae.py."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar, Optional

from opensora.config.command_line import parse_flags
from opensora.config.device import DeviceOptions
from opensora.config.options import check_at_least_one, check_choice, from_mapping, option, option_of
from opensora.datasets.vae_options import VAEDataOptions
from opensora.errors import UserError
from opensora.train.adamw import AdamW
from opensora.train.ema import EMA
from opensora.train.trainer_options import TrainerOptions

EVAL_STEPS = 1000  # the published interval between validations
MODEL_NAMES = ("WFVAE", "CausalVAE")
DISCRIMINATORS = ("LPIPSWithDiscriminator", "LPIPSWithDiscriminator3D")  # of frames, and of videos
LOSS_TYPES, DISC_LOSSES = ("l1", "l2"), ("hinge", "vanilla")

_model, _data, _losses, _optimizer = (
    partial(option, group=group) for group in ("model", "data", "losses", "optimizer")
)


def _class_name(text: str) -> str:
    """The name of a class, which published commands give with its module."""
    return text.rpartition(".")[2]


@dataclass(frozen=True)
class VAETrainerOptions(TrainerOptions):
    """`TrainerOptions` with the published defaults of VAE training."""

    start_learning_rate: float = option_of(TrainerOptions, "start_learning_rate", 1e-5)
    checkpointing_steps: int = option_of(TrainerOptions, "checkpointing_steps", 1000)

    def __post_init__(self):
        super().__post_init__()
        if self.val_interval is None and self.val_interval_steps is None:
            object.__setattr__(self, "val_interval_steps", EVAL_STEPS)


@dataclass(frozen=True)
class VAELossOptions:
    """Terms of the loss and their weights; adversarial training begins with step `disc_start`.

    Raises:
        UserError: an unknown `loss_type` or `disc_loss`.
    """

    group: ClassVar[str] = "losses"

    loss_type: str = option("l1", "reconstruction loss: l1 absolute, l2 squared error", choices=LOSS_TYPES)
    perceptual_weight: float = option(
        0.0, "weight of the LPIPS loss, which needs --lpips_path; published: 0, in stage 3 0.1"
    )
    kl_weight: float = option(1e-6, "weight of the KL divergence")
    wavelet_loss: bool = option(False, "also compare the wavelet coefficients of encoder and decoder", takes_value=True)
    wavelet_weight: float = option(0.1, "weight of the wavelet loss")
    logvar_init: float = option(0.0, "log variance of the reconstruction loss, a constant")
    disc_start: int = option(5, "step at which adversarial training begins")
    disc_weight: float = option(0.5, "weight of the adversarial loss, times the adaptive weight")
    disc_loss: str = option("hinge", "loss of the discriminator", choices=DISC_LOSSES)

    def __post_init__(self):
        check_choice("loss_type", self.loss_type, LOSS_TYPES)
        check_choice("disc_loss", self.disc_loss, DISC_LOSSES)

    def trains_discriminator(self, step: int) -> bool:
        """Whether step `step`, from 0, trains the discriminator: every odd step from `disc_start` on does."""
        return step >= self.disc_start and step % 2 == 1


@dataclass(frozen=True)
class VAEFlags:
    """Flags that `VAETrainOptions` holds in another form."""

    exp_name: Optional[str] = _model(None, "subfolder of --output_dir for this run")
    eval_video_path: Optional[str] = _data(None, "folder of held-out videos, for --validate")
    eval_data_file_path: Optional[str] = _data(
        None, "csv file that lists the held-out videos; default: all in the folder"
    )
    eval_num_frames: int = _data(17, "frames of a held-out clip, 4n+1")
    eval_resolution: int = _data(256, "height and width of held-out clips in pixels")
    eval_sample_rate: int = _data(1, "take every n-th frame of held-out videos")
    optim: str = _optimizer("adamw", "optimizer", choices=("adamw",))
    betas: tuple[float, float] = _optimizer((0.9, 0.999), "decay rates of AdamW's moments")
    adam_epsilon: float = _optimizer(1e-8, "epsilon of AdamW")
    weight_decay: float = _optimizer(1e-4, "weight decay of the autoencoder; that of the discriminator is 0.01")
    clip_grad: bool = _optimizer(
        False,
        "clip the gradient of the autoencoder; that of the discriminator is always clipped to 1",
        takes_value=True,
    )
    max_grad_norm: float = _optimizer(1.0, "maximum norm of the gradient, with --clip_grad")
    use_ema: bool = _optimizer(False, "keep an exponential moving average of the weights", takes_value=True)
    ema_decay: float = _optimizer(0.999, "decay of the moving average, without warm-up")

    def adamw(self) -> AdamW:
        return AdamW(*self.betas, self.adam_epsilon, self.weight_decay)

    def ema(self) -> Optional[EMA]:
        return EMA(self.ema_decay, warm_up=False) if self.use_ema else None


@dataclass(frozen=True)
class VAETrainOptions:
    """VAE training.

    Args:
        max_grad_norm: None: no clipping.

    Raises:
        UserError: numbers below 1, or no model.
    """

    data: VAEDataOptions
    loss: VAELossOptions = VAELossOptions()
    model_config: Optional[str] = _model(
        None, "json file of the model configuration; default: that of the pretrained weights"
    )
    pretrained_model_name_or_path: Optional[str] = _model(
        None, "initial weights: folder or file", flags=("--load_from_checkpoint",)
    )
    model_name: Optional[str] = _model(
        None, "class of the autoencoder; default: that of its configuration", choices=MODEL_NAMES
    )
    freeze_encoder: bool = _model(False, "train the decoder alone", takes_value=True)
    lpips_path: str = _losses("pretrained/lpips_vgg-426bf45c.ckpt", "weights of LPIPS, with VGG")
    use_discriminator: bool = _losses(False, "train with a discriminator", takes_value=True)
    disc_cls: str = _losses(
        DISCRIMINATORS[1],
        "published loss: LPIPSWithDiscriminator has a discriminator of frames, LPIPSWithDiscriminator3D one of videos",
        choices=DISCRIMINATORS,
        type=_class_name,
    )
    print_losses: bool = _losses(False, "log every term of the losses", takes_value=True)
    eval_subset_size: int = _data(100, "maximum number of held-out videos to measure")
    eval_num_video_log: int = _data(2, "number of videos shown in TensorBoard")
    eval_lpips: Optional[str] = _data(
        None, "weights of LPIPS with AlexNet; default: LPIPS is not measured", metavar="FILE"
    )
    train_batch_size: int = _data(1, "clips of one process per micro-step", flags=("--batch_size",))
    dataloader_num_workers: int = _data(
        4, "processes that read videos", flags=("--dataset_num_worker", "--num_workers")
    )
    gradient_accumulation_steps: int = _optimizer(1, "micro-steps of each optimizer step")
    init_loss_scale: float = _optimizer(65536.0, "initial loss scale, in fp16")
    zero_stage: int = _optimizer(
        0, "ZeRO stage: 1 shards optimizer states over the processes, 2 gradients too", choices=(0, 1, 2)
    )
    val_data: Optional[VAEDataOptions] = None
    max_grad_norm: Optional[float] = None
    adamw: AdamW = VAEFlags().adamw()
    disc_adamw: AdamW = replace(adamw, adam_weight_decay=1e-2)
    disc_max_grad_norm: float = 1.0
    ema: Optional[EMA] = None
    seed: int = DeviceOptions.seed

    def __post_init__(self):
        check_at_least_one(self, "train_batch_size", "gradient_accumulation_steps", "eval_subset_size")
        if self.model_config is None and self.pretrained_model_name_or_path is None:
            raise UserError("--model_config is missing: a json file such as scripts/causalvae/wfvae_8dim.json")


OPTIONS = (VAETrainerOptions, VAEFlags, VAETrainOptions, VAEDataOptions, VAELossOptions, DeviceOptions)


def parse_options(argv: Optional[Sequence[str]] = None) -> tuple[TrainerOptions, VAETrainOptions, argparse.Namespace]:
    """Raises UserError for flags that contradict each other."""
    args = parse_flags("Trains WFVAE or CausalVAE on videos.", OPTIONS, argv, yaml_file=True)
    flags, data = from_mapping(VAEFlags, vars(args)), from_mapping(VAEDataOptions, vars(args))
    if args.validate and flags.eval_video_path is None:
        raise UserError("--validate needs --eval_video_path")
    val_data = None
    if flags.eval_video_path is not None and args.validate:
        val_data = replace(
            data,
            video_path=flags.eval_video_path,
            data_file_path=flags.eval_data_file_path,
            num_frames=flags.eval_num_frames,
            resolution=flags.eval_resolution,
            sample_rate=flags.eval_sample_rate,
            dynamic_sample=False,
        )
    options = from_mapping(
        VAETrainOptions,
        vars(args),
        data=data,
        loss=from_mapping(VAELossOptions, vars(args)),
        val_data=val_data,
        adamw=flags.adamw(),
        disc_adamw=replace(flags.adamw(), adam_weight_decay=VAETrainOptions.disc_adamw.adam_weight_decay),
        ema=flags.ema(),
        max_grad_norm=flags.max_grad_norm if flags.clip_grad else None,
    )
    output_dir = str(Path(args.output_dir) / flags.exp_name) if flags.exp_name else args.output_dir
    return from_mapping(VAETrainerOptions, vars(args), output_dir=output_dir), options, args
