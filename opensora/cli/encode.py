"""opensora encode: encodes training data once, so that training needs neither autoencoder nor text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional


def main(argv: Optional[Sequence[str]] = None) -> None:
    from opensora.train.encode_options import parse_options

    options, args = parse_options(argv)
    from opensora import device  # MindSpore is imported after the flags are checked
    from opensora.train.encode import encode

    encode(options, device.setup(args))
