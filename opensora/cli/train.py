"""opensora train-t2v, train-inpaint, train-vae, and train, which reads a config file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional


def t2v(argv: Optional[Sequence[str]] = None) -> None:
    from opensora.train.t2v import T2VTraining
    from opensora.train.t2v_options import parse_options
    from opensora.train.trainer import run

    run(T2VTraining, lambda: parse_options(argv))


def inpaint(argv: Optional[Sequence[str]] = None) -> None:
    from opensora.train.inpaint import InpaintTraining
    from opensora.train.inpaint_options import parse_options
    from opensora.train.trainer import run

    run(InpaintTraining, lambda: parse_options(argv))


def vae(argv: Optional[Sequence[str]] = None) -> None:
    from opensora.train.trainer import run
    from opensora.train.vae import VAETraining
    from opensora.train.vae_options import parse_options

    run(VAETraining, lambda: parse_options(argv))


def config(argv: Optional[Sequence[str]] = None) -> None:
    from opensora.config.mmengine import device_arguments, parse_configs

    given = parse_configs(training=True, argv=argv)
    from opensora import device
    from opensora.train.config_run import run

    run(given, device.setup(device_arguments(given)))
