"""The options of memory: how much a run may use, and how it holds the weights of each model."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Optional

from opensora.config.options import option
from opensora.errors import UserError

MODELS = ("text_encoder", "transformer", "vae")
WEIGHTS = ("as_stored", "fp32", "bf16", "fp16", "q8_0")
UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def byte_count(text: str) -> int:
    """The bytes of a size such as 8GB, 1.5 GB, 512MB or 8GiB.

    Raises:
        argparse.ArgumentTypeError: not a size.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]?i?)b?\s*", text.lower())
    if not found or found[2] not in UNITS or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not a size of memory; write it as 8GB, 1.5GB or 512MB")
    return int(float(found[1]) * UNITS[found[2]])


@dataclass(frozen=True)
class MemoryOptions:
    """The memory of a run, and the formats of the weights in it."""

    group: ClassVar[str] = "memory and stages"

    memory: Optional[int] = option(
        None,
        "most memory that the run may use, such as 8GB; it decides which models stay loaded and which are read from "
        "their files block by block; default: the memory that is free",
        type=byte_count,
        metavar="SIZE",
    )
    weights: Sequence[str] = option(
        (),
        f"formats of the weights in memory, for all models ({', '.join(WEIGHTS)}) or by model, such as "
        "transformer=q8_0; as_stored: 16-bit files stay 16-bit; default: as_stored",
        metavar="[MODEL=]FORMAT",
    )

    def __post_init__(self):
        self.weights_by_model()

    def weights_by_model(self) -> Mapping[str, Optional[str]]:
        """The format for each of `MODELS`; None where none is given.

        Raises:
            UserError: an unknown model or format.
        """
        result: dict[str, Optional[str]] = dict.fromkeys(MODELS)
        for text in self.weights:
            model, _, weights = text.rpartition("=")
            if model not in ("", *MODELS) or weights not in WEIGHTS:
                raise UserError(
                    f"--weights {text!r:.60}: give one of {', '.join(WEIGHTS)} for all models, or MODEL=FORMAT for "
                    f"one of {', '.join(MODELS)}"
                )
            result.update(dict.fromkeys([model] if model else MODELS, weights))
        return result
