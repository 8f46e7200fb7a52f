"""The options of train_inpaint.py: those of text-to-video training, and the conditioning frames."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Optional

from opensora.config.command_line import parse_flags
from opensora.config.options import from_mapping, option, option_of
from opensora.datasets.masks import MaskConfig
from opensora.datasets.t2v.options import InpaintDataOptions
from opensora.errors import UserError
from opensora.train.t2v_options import OPTIONS, T2VFlags, T2VTrainOptions, TrainerOptions, training_options


@dataclass(frozen=True)
class InpaintFlags:
    """Flags that `InpaintTrainOptions` holds in another form."""

    group: ClassVar[str] = "conditioning frames"

    mask_config: Path = option(help="YAML file of the mask types, such as scripts/train_configs/mask_config.yaml")
    dataset: str = option_of(T2VFlags, "dataset", "inpaint", choices=("inpaint", "i2v"))


@dataclass(frozen=True)
class InpaintTrainOptions(T2VTrainOptions):
    """`add_noise_to_condition`: a little noise on the conditioning frames makes the generated motion stronger."""

    data: InpaintDataOptions
    add_noise_to_condition: bool = option(
        False, "add a little noise to the conditioning frames", takes_value=True, group=InpaintFlags.group
    )

    def __post_init__(self):
        super().__post_init__()
        if self.train_batch_size > 1 and not self.data.group_data:
            raise UserError("--train_batch_size above 1 needs --group_data: masks are for videos of one length")


INPAINT_OPTIONS = (InpaintFlags, InpaintDataOptions, InpaintTrainOptions, *OPTIONS)


def parse_options(
    argv: Optional[Sequence[str]] = None,
) -> tuple[TrainerOptions, InpaintTrainOptions, argparse.Namespace]:
    """Raises FileNotFoundError, UserError: an invalid mask configuration; flags that contradict each other."""
    args = parse_flags(
        "Trains the inpaint model on videos and images with captions.", INPAINT_OPTIONS, argv, yaml_file=True
    )
    data = from_mapping(InpaintDataOptions, vars(args), mask=MaskConfig.from_file(args.mask_config))
    return from_mapping(TrainerOptions, vars(args)), training_options(InpaintTrainOptions, args, data), args
