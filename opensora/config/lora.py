"""The value of flags that name LoRAs, FILE or FILE:SCALE."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from opensora.config.options import finite_float


class LoRASpec(NamedTuple):
    """A LoRA to apply: its file or folder, and what its change is multiplied by, which may be negative or 0."""

    path: Path
    scale: float = 1.0


def parse_lora(text: str) -> LoRASpec:
    """The LoRA of a flag. The text is a path without a scale if such a file exists, or if a slash follows its colon.

    Raises:
        argparse.ArgumentTypeError: no path, or a scale that is not a finite number.
    """
    path, colon, scale = text.rpartition(":")
    if not colon or "/" in scale or (text and Path(text).exists()):
        path, scale = text, "1"
    if not path:
        raise argparse.ArgumentTypeError(f"{text!r:.100} names no file; write it as FILE or FILE:SCALE")
    try:
        return LoRASpec(Path(path), finite_float(scale))
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r:.100}: the scale {scale!r:.40} should be a finite number, and no such file exists"
        ) from error
