"""The options of train_t2v_diffusers.py."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, Optional, TypeVar

from opensora.config.command_line import parse_flags
from opensora.config.device import DeviceOptions
from opensora.config.families import DEFAULT_VAE, DIT_PRESETS, OLDER_PRESETS, PREDICTION_TYPES, VAES
from opensora.config.lora_training import LoRATrainOptions
from opensora.config.options import check_at_least_one, check_choice, from_mapping, option
from opensora.datasets.t2v.options import T2VDataOptions
from opensora.errors import UserError
from opensora.train.adamw import AdamW
from opensora.train.ema import EMA
from opensora.train.trainer_options import TrainerOptions
from opensora.train.validation_options import ValidationSampleOptions

WEIGHTING_SCHEMES = ("logit_normal", "mode", "sigma_sqrt", "cosmap")

PRESETS = (*DIT_PRESETS, *OLDER_PRESETS)

_model, _data, _optimizer, _parallel = (
    partial(option, group=group) for group in ("model", "data", "optimizer", "parallel")
)


@dataclass(frozen=True)
class ObjectiveOptions:
    """The diffusion objective.

    Raises:
        UserError: an unknown name, or options that contradict each other.
    """

    group: ClassVar[str] = "objective"

    prediction_type: str = option("epsilon", "prediction type of the model", choices=PREDICTION_TYPES)
    snr_gamma: Optional[float] = option(None, "gamma of min-SNR weighting, usually 5.0; default: no weighting")
    noise_offset: float = option(0.0, "strength of the noise that all positions of a channel share")
    rescale_betas_zero_snr: bool = option(False, "noise schedule with zero terminal SNR")
    cogvideox_scheduler: bool = option(False, "noise schedule of CogVideoX")
    v1_5_scheduler: bool = option(False, "noise schedule of Stable Diffusion 1.5")
    rf_scheduler: bool = option(False, "rectified flow")
    weighting_scheme: str = option(
        "logit_normal", "density and weights of the timesteps of rectified flow", choices=WEIGHTING_SCHEMES
    )
    logit_mean: float = option(0.0, "mean of logit_normal")
    logit_std: float = option(1.0, "standard deviation of logit_normal")
    mode_scale: float = option(1.29, "scale of the weighting scheme mode")

    def __post_init__(self):
        check_choice("--prediction_type", self.prediction_type, PREDICTION_TYPES)
        check_choice("--weighting_scheme", self.weighting_scheme, WEIGHTING_SCHEMES)
        if self.cogvideox_scheduler + self.v1_5_scheduler + self.rf_scheduler > 1:
            raise UserError("choose one of --cogvideox_scheduler, --v1_5_scheduler and --rf_scheduler")
        if self.snr_gamma is not None and self.snr_gamma <= 0:
            raise UserError(f"--snr_gamma {self.snr_gamma} must be above 0; leave it out for no weighting")
        if self.snr_gamma is not None and (self.rf_scheduler or self.prediction_type == "sample"):
            raise UserError(
                "--snr_gamma weights epsilon and v_prediction; leave it out with --rf_scheduler or "
                "--prediction_type sample"
            )

    def model_keys(self) -> dict[str, Any]:
        """The keys of the model's config.json that record the objective for sampling; None: not recorded."""
        return {
            "prediction_type": None if self.rf_scheduler else self.prediction_type,
            "rescale_betas_zero_snr": self.rescale_betas_zero_snr or None,
            "v1_5_scheduler": self.v1_5_scheduler or None,
        }


@dataclass(frozen=True)
class T2VFlags:
    """Flags that `T2VTrainOptions` holds in another form."""

    dataset: str = _data("t2v", "kind of dataset", choices=("t2v",))
    val_data: Optional[str] = _data(None, "held-out data for --validate, in the form of --data")
    use_rope: Optional[bool] = _model(
        None,
        "rotary positions of OpenSoraT2V (v1.2), or added ones; default: as in its configuration",
        takes_value=True,
    )
    sparse1d: bool = _model(False, "skiparse attention", takes_value=True)
    sparse_n: int = _model(2, "skiparse factor: each token attends to one n-th of the sequence")
    interpolation_scale_t: float = _model(1.0, "interpolation scale of the rotary positions in time")
    interpolation_scale_h: float = _model(1.0, "interpolation scale of the rotary positions along the height")
    interpolation_scale_w: float = _model(1.0, "interpolation scale of the rotary positions along the width")
    clip_grad: bool = _optimizer(True, "clip the norm of the gradient to --max_grad_norm", takes_value=True)
    use_ema: bool = _optimizer(False, "keep an exponential moving average of the weights", takes_value=True)
    parallel_mode: Optional[str] = _parallel(
        None,
        "data: every process has all states; optim: optimizer states are sharded; zero: as --zero_stage says",
        choices=("data", "optim", "zero"),
    )
    zero_stage: Optional[int] = _parallel(
        None, "of --parallel_mode zero: 1 shards optimizer states, 2 gradients too, 3 weights too", choices=(0, 1, 2, 3)
    )

    def sharding_stage(self) -> int:
        """The ZeRO stage. Raises UserError if --zero_stage is missing, or the mode does not take it."""
        if self.parallel_mode in (None, "zero"):
            if self.zero_stage is None and self.parallel_mode == "zero":
                raise UserError("--parallel_mode zero needs --zero_stage 1, 2 or 3")
            return self.zero_stage or 0
        if self.zero_stage is not None:
            raise UserError(f"--zero_stage {self.zero_stage} is for --parallel_mode zero, not {self.parallel_mode}")
        return 1 if self.parallel_mode == "optim" else 0

    def model_changes(self, objective: ObjectiveOptions) -> dict[str, Any]:
        """Keys of the model's config.json that flags set."""
        rope = {} if self.use_rope is None else {"use_rope": self.use_rope}
        return {
            **rope,
            "sparse1d": self.sparse1d,
            "sparse_n": self.sparse_n,
            **objective.model_keys(),
            **{f"interpolation_scale_{axis}": getattr(self, f"interpolation_scale_{axis}") for axis in "thw"},
        }


@dataclass(frozen=True)
class T2VTrainOptions:
    """Text-to-video training.

    Args:
        model_changes: keys of the model's config.json that flags set.
        zero_stage: ZeRO stage, 0 to 3.
        max_grad_norm: None: no clipping.
        lora: None: all weights are trained.
        val_sampling: None: validation samples no videos.

    Raises:
        UserError: values out of range, or options that contradict each other.
    """

    data: T2VDataOptions
    ae_path: Optional[str] = _model(None, "folder of the autoencoder; not needed with --latent_cache")
    model: Optional[str] = _model(
        None, f"{', '.join(PRESETS)}, or a folder with a config.json; default: that of --pretrained"
    )
    pretrained: Optional[str] = _model(
        None,
        "initial weights: a folder, a .safetensors or a torch file; what they lack is random",
        flags=("--pretrained_transformer_model_path",),
    )
    ae: str = _model(DEFAULT_VAE, "name of the autoencoder", choices=tuple(VAES))
    enable_tiling: bool = _model(False, "encode in chunks along time, with CausalVAE in tiles")
    tile_overlap_factor: Optional[float] = _model(
        None, "of CausalVAE: share of a tile that the next one repeats; default: that of the published model"
    )
    vae_fp32: bool = _model(False, "run the autoencoder in float32 whatever the precision")
    text_encoder_name_1: Optional[str] = _model(
        None,
        "folder of mT5 or T5; not needed with --text_embed_cache or --latent_cache",
        flags=("--text_encoder_name",),
    )
    latent_cache: Optional[str] = _data(None, "folder that opensora encode made from --data, instead of both models")
    val_latent_cache: Optional[str] = _data(None, "folder that opensora encode made from --val_data")
    objective: ObjectiveOptions = ObjectiveOptions()
    train_batch_size: int = _data(1, "samples of one process per micro-step")
    val_batch_size: int = _data(1, "held-out samples of one process at a time")
    dataloader_num_workers: int = _data(4, "processes that read data")
    gradient_accumulation_steps: int = _optimizer(1, "micro-steps of each optimizer step")
    gradient_checkpointing: bool = _optimizer(
        False, "less memory: recompute the blocks in the backward pass", takes_value=True
    )
    max_grad_norm: Optional[float] = _optimizer(1.0, "maximum norm of the gradient")
    sp_size: int = _parallel(1, "processes that share a video")
    train_sp_batch_size: int = _parallel(1, "samples that these share per micro-step")
    adamw: AdamW = AdamW()
    ema: Optional[EMA] = None
    model_changes: Mapping = field(default_factory=dict)
    val_data: Optional[T2VDataOptions] = None
    val_sampling: Optional[ValidationSampleOptions] = None
    zero_stage: int = 0
    lora: Optional[LoRATrainOptions] = None
    seed: int = DeviceOptions.seed

    def __post_init__(self):
        check_at_least_one(
            self, "train_batch_size", "val_batch_size", "gradient_accumulation_steps", "train_sp_batch_size"
        )
        if self.model is None and self.pretrained is None:
            raise UserError(f"--model is missing: one of {', '.join(PRESETS)}, or a folder with a config.json")
        if self.lora is not None and (self.pretrained is None or self.model is not None):
            raise UserError(
                "--lora_rank adapts pretrained weights: give their folder with --pretrained, without --model"
            )
        shared = self.sp_size * self.train_batch_size
        if self.sp_size > 1 and shared % self.train_sp_batch_size:
            raise UserError(
                f"--train_sp_batch_size {self.train_sp_batch_size} does not divide the {shared} samples "
                f"of a group's batch (sp_size {self.sp_size} x train_batch_size {self.train_batch_size})"
            )
        if self.sp_size > 1 and self.train_batch_size > 1 and not self.data.group_data:
            raise UserError("--sp_size with --train_batch_size above 1 needs --group_data: padding cannot be split")
        if self.latent_cache is not None and self.data.use_image_num:
            raise UserError("--use_image_num needs the pixels of videos and images: leave out --latent_cache")
        if self.latent_cache is None and self.ae_path is None:
            raise UserError("--ae_path is missing; only --latent_cache does without")
        if self.latent_cache is None and self.text_encoder_name_1 is None and not self.data.text_embed_cache:
            raise UserError("--text_encoder_name_1 is missing; only --text_embed_cache and --latent_cache do without")
        if self.val_data is not None and (self.latent_cache is None) != (self.val_latent_cache is None):
            raise UserError("--validate needs both of --latent_cache and --val_latent_cache, or neither")


OPTIONS = (
    TrainerOptions,
    T2VFlags,
    T2VTrainOptions,
    T2VDataOptions,
    ObjectiveOptions,
    ValidationSampleOptions,
    LoRATrainOptions,
    AdamW,
    EMA,
    DeviceOptions,
)
Options = TypeVar("Options", bound=T2VTrainOptions)


def parse_options(argv: Optional[Sequence[str]] = None) -> tuple[TrainerOptions, T2VTrainOptions, argparse.Namespace]:
    """Raises UserError for flags that contradict each other."""
    args = parse_flags(
        "Trains the diffusion transformer on videos and images with captions.", OPTIONS, argv, yaml_file=True
    )
    data = from_mapping(T2VDataOptions, vars(args))
    return from_mapping(TrainerOptions, vars(args)), training_options(T2VTrainOptions, args, data), args


def training_options(options: type[Options], args: argparse.Namespace, data: T2VDataOptions) -> Options:
    """`options`, the class of text-to-video training or one derived from it, from the parsed flags."""
    if args.validate and args.val_data is None:
        raise UserError("--validate needs --val_data")
    flags, objective = from_mapping(T2VFlags, vars(args)), from_mapping(ObjectiveOptions, vars(args))
    return from_mapping(
        options,
        vars(args),
        data=data,
        objective=objective,
        model_changes=flags.model_changes(objective),
        val_data=replace(data, **{data.form: args.val_data}, cfg=0.0, total_batch_size=0) if args.validate else None,
        val_sampling=ValidationSampleOptions.of(vars(args)),
        zero_stage=flags.sharding_stage(),
        lora=LoRATrainOptions.of(vars(args)),
        adamw=from_mapping(AdamW, vars(args)),
        ema=from_mapping(EMA, vars(args)) if flags.use_ema else None,
        max_grad_norm=args.max_grad_norm if flags.clip_grad else None,
    )
