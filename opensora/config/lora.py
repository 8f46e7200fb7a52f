"""The value of flags that name LoRAs, FILE or FILE:SCALE."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from opensora.config.options import finite_float, option
from opensora.errors import UserError


@dataclass(frozen=True)
class LoRASpec:
    """A LoRA to apply: its file or folder, and what its change is multiplied by, which may be negative or 0.

    Not a tuple: MMEngine's dicts of fields, where flags go, rebuild tuples.
    """

    path: Path
    scale: float = 1.0

    def __str__(self) -> str:
        return f"{self.path}:{self.scale:g}"


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


@dataclass(frozen=True)
class LoRAOptions:
    """The LoRAs of a run. In a config file they are strings."""

    group: ClassVar[str] = "weights"

    lora: Sequence[Any] = option(
        (),
        "LoRA files or folders to apply to the transformer, each with a scale; default: none; a missing scale is 1",
        type=parse_lora,
        metavar="FILE[:SCALE]",
    )


def parse_loras(values: Iterable[Any]) -> list[LoRASpec]:
    """The LoRAs of a flag or of a field of a config file.

    Raises:
        UserError: a text that `parse_lora` does not accept, or another value.
    """
    if isinstance(values, str):
        values = [values]
    try:
        return [value if isinstance(value, LoRASpec) else parse_lora(str(value)) for value in values]
    except argparse.ArgumentTypeError as error:
        raise UserError(f"lora: {error}") from error
