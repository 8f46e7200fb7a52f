"""The options of opensora encode."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Optional

from opensora.config.command_line import parse_flags
from opensora.config.device import DeviceOptions
from opensora.config.options import check_at_least_one, from_mapping, option, option_of
from opensora.datasets.latents.manifest import data_settings
from opensora.datasets.masks import MaskConfig
from opensora.datasets.t2v.options import InpaintDataOptions, T2VDataOptions
from opensora.errors import UserError
from opensora.train.inpaint_options import InpaintFlags, InpaintTrainOptions
from opensora.train.t2v_options import T2VFlags, T2VTrainOptions


@dataclass(frozen=True)
class EncodeFlags:
    """Flags that `EncodeOptions` holds in another form."""

    group: ClassVar[str] = InpaintFlags.group

    dataset: str = option_of(T2VFlags, "dataset", choices=("t2v", "inpaint", "i2v"))
    mask_config: Optional[Path] = option(None, "YAML file of the mask types; required by --dataset inpaint")


@dataclass(frozen=True)
class EncodeOptions:
    """What a latent cache is made from.

    Raises:
        UserError: values out of range, or options that contradict each other.
    """

    data: T2VDataOptions
    output: str = option(help="folder of the cache; a repeated run resumes, and adds what is new in --data")
    ae_path: str = option(help="folder of the autoencoder", group="model")
    ae: str = option_of(T2VTrainOptions, "ae")
    enable_tiling: bool = option_of(T2VTrainOptions, "enable_tiling")
    tile_overlap_factor: Optional[float] = option_of(T2VTrainOptions, "tile_overlap_factor")
    vae_fp32: bool = option_of(T2VTrainOptions, "vae_fp32")
    text_encoder_name_1: Optional[str] = option_of(
        T2VTrainOptions, "text_encoder_name_1", help="folder of mT5 or T5; not needed with --text_embed_cache"
    )
    crops: int = option(1, "random clips of each sample; the inpaint model gets as many masks of each")
    batch_size: int = option(1, "clips of one size, and texts, that a process encodes together")
    dataloader_num_workers: int = option_of(T2VTrainOptions, "dataloader_num_workers")
    sp_size: int = option_of(T2VTrainOptions, "sp_size", help="that of the training, which lengths of clips depend on")
    add_noise_to_condition: bool = option_of(InpaintTrainOptions, "add_noise_to_condition")
    seed: int = DeviceOptions.seed

    def __post_init__(self):
        check_at_least_one(self, "crops", "batch_size")
        if self.data.use_image_num:
            raise UserError("--use_image_num: a latent cache has no images beside videos; leave it out")
        if self.text_encoder_name_1 is None and not self.data.text_embed_cache:
            raise UserError("--text_encoder_name_1 is missing; only --text_embed_cache does without")
        if self.add_noise_to_condition and not self.is_inpaint:
            raise UserError("--add_noise_to_condition is for --dataset inpaint")

    @property
    def is_inpaint(self) -> bool:
        return isinstance(self.data, InpaintDataOptions)

    @property
    def settings(self) -> dict[str, Any]:
        """What training must have in common with the cache, see `Manifest`."""
        noise = {"--add_noise_to_condition": self.add_noise_to_condition} if self.is_inpaint else {}
        return {**data_settings(self.data), "--ae": self.ae, **noise}


OPTIONS = (EncodeOptions, EncodeFlags, InpaintDataOptions, DeviceOptions)


def parse_options(argv: Optional[Sequence[str]] = None) -> tuple[EncodeOptions, argparse.Namespace]:
    """Raises FileNotFoundError, UserError: an invalid mask configuration; flags that contradict each other."""
    args = parse_flags(
        "Encodes training data once; train-t2v and train-inpaint read the result with --latent_cache.",
        OPTIONS,
        argv,
        yaml_file=True,
    )
    return from_mapping(EncodeOptions, vars(args), data=_data(args)), args


def _data(args: argparse.Namespace) -> T2VDataOptions:
    values = {**vars(args), "total_batch_size": 0}  # no sample is left out because its shape is rare
    if args.dataset == "t2v":
        if args.mask_config is not None:
            raise UserError(f"--mask_config {args.mask_config} is for --dataset inpaint")
        return from_mapping(T2VDataOptions, values)
    if args.mask_config is None:
        raise UserError(f"--dataset {args.dataset} needs --mask_config")
    if args.text_embed_cache:
        values["default_text_ratio"] = 0.0
    return from_mapping(InpaintDataOptions, values, mask=MaskConfig.from_file(args.mask_config))
