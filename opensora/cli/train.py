"""opensora train-t2v, train-inpaint, train-vae, and train, which reads a config file.

MindSpore is imported after the flags are checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional


def t2v(argv: Optional[Sequence[str]] = None) -> None:
    from opensora.train.t2v_options import parse_options

    options = parse_options(argv)
    from opensora.train.t2v import T2VTraining
    from opensora.train.trainer import run

    run(T2VTraining, *options)


def inpaint(argv: Optional[Sequence[str]] = None) -> None:
    from opensora.train.inpaint_options import parse_options

    options = parse_options(argv)
    from opensora.train.inpaint import InpaintTraining
    from opensora.train.trainer import run

    run(InpaintTraining, *options)


def vae(argv: Optional[Sequence[str]] = None) -> None:
    from opensora.train.vae_options import parse_options

    options = parse_options(argv)
    from opensora.train.trainer import run
    from opensora.train.vae import VAETraining

    run(VAETraining, *options)


def config(argv: Optional[Sequence[str]] = None) -> None:
    from opensora.cli.config_files import parse_configs
    from opensora.config.mmengine import device_arguments

    given = parse_configs(training=True, argv=argv)
    from opensora import device
    from opensora.train.config_run import run

    run(given, device.setup(device_arguments(given)))
