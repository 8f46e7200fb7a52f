"""The flags of train_inpaint.py: those of text-to-video training, and what is given of a video."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from opensora.datasets.masks import MaskConfig
from opensora.datasets.t2v.inpaint import InpaintDataOptions
from opensora.train.inpaint import InpaintTrainOptions
from opensora.train.t2v_options import add_arguments, training_options
from opensora.train.trainer import TrainerOptions
from opensora.utils.cli import CommandParser, parse_with_config, pick, str2bool


def parse_options(
    argv: Optional[Sequence[str]] = None,
) -> tuple[TrainerOptions, InpaintTrainOptions, argparse.Namespace]:
    """Raises FileNotFoundError, UserError: no or a faulty mask configuration; flags that contradict."""
    parser = CommandParser(description="Trains the inpaint model on videos and images with captions.")
    add_arguments(parser, datasets=("inpaint", "i2v"))
    group = parser.add_argument_group("what is given")
    group.add_argument("--mask_config", required=True, type=Path, help="such as scripts/train_configs/mask_config.yaml")
    group.add_argument(
        "--default_text_ratio",
        type=float,
        default=0.5,
        help="of the captions left out (--cfg), how many a standard sentence stands for",
    )
    group.add_argument(
        "--add_noise_to_condition",
        type=str2bool,
        nargs="?",
        const=True,
        default=False,
        help="put a little noise on the given frames",
    )
    args = parse_with_config(parser, argv)
    data = pick(InpaintDataOptions, args, mask=MaskConfig.from_file(args.mask_config))
    return pick(TrainerOptions, args), training_options(InpaintTrainOptions, args, data), args
