"""opensora sample: videos or images from text, or from text and given frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from opensora.sample.options import parse_options


def main(argv: Optional[Sequence[str]] = None) -> None:
    options, args = parse_options(argv)
    from opensora import device  # MindSpore is imported after the flags are checked
    from opensora.sample.job import run

    run(options, device.setup(args))
