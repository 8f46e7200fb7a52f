"""opensora inference, opensora inference-long: what a config file describes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from opensora.cli.config_files import parse_configs
from opensora.config.mmengine import device_arguments


def main(argv: Optional[Sequence[str]] = None) -> None:
    _run(argv, long=False)


def main_long(argv: Optional[Sequence[str]] = None) -> None:
    _run(argv, long=True)


def _run(argv: Optional[Sequence[str]], long: bool) -> None:
    config = parse_configs(training=False, argv=argv)
    from opensora import device  # MindSpore is imported after the flags are checked
    from opensora.sample.config_inference import run

    run(config, device.setup(device_arguments(config)), long=long)
