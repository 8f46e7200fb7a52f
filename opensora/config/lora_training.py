"""The options of LoRA training: adapters are trained in place of the weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

from opensora.config.memory import WEIGHTS
from opensora.config.options import check_at_least_one, check_choice, from_mapping, option
from opensora.errors import UserError

PLAIN_NAME = re.compile(r"[\w.]+")  # of a layer; anything else is a regular expression


@dataclass(frozen=True)
class LoRATrainOptions:
    """What LoRA adapts (Hu et al. 2021), and how the frozen weights are held.

    Raises:
        UserError: a value out of range, or options without `lora_rank`.
    """

    group: ClassVar[str] = "LoRA"

    lora_rank: Optional[int] = option(
        None, "train adapters of this rank and freeze the weights; default: train the weights"
    )
    lora_alpha: Optional[float] = option(None, "adapters are scaled by lora_alpha / lora_rank; default: the rank")
    lora_dropout: float = option(0.0, "dropout before the adapters; PyNative mode only")
    lora_target_modules: Optional[Sequence[str]] = option(
        None,
        "linear layers to adapt: ends of their names, such as to_q to_v, or a regular expression for whole names; "
        "default: queries, keys, values and outputs of all attention layers",
        metavar="NAME",
    )
    weights: Optional[str] = option(
        None,
        "format in which the frozen weights are held; default: that of --precision",
        choices=WEIGHTS,
        metavar="FORMAT",
    )

    def __post_init__(self):
        check_at_least_one(self, "lora_rank")
        if self.weights is not None:
            check_choice("--weights", self.weights, WEIGHTS)
        if not 0 <= self.lora_dropout < 1:
            raise UserError(f"--lora_dropout {self.lora_dropout}: should be at least 0 and below 1")
        if self.lora_alpha is not None and not self.lora_alpha > 0:
            raise UserError(f"--lora_alpha {self.lora_alpha}: should be above 0, usually the rank or half of it")
        if self.lora_rank is None:
            for name in ("lora_alpha", "lora_dropout", "lora_target_modules", "weights"):
                if getattr(self, name):
                    raise UserError(f"--{name} is for LoRA training: add --lora_rank, or leave it out")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Optional[LoRATrainOptions]:
        """The options among the values of a command line or a config; None if the weights are trained."""
        options = from_mapping(cls, {name: value for name, value in values.items() if value is not None})
        return None if options.lora_rank is None else options

    @property
    def rank(self) -> int:
        assert self.lora_rank is not None, "`of` returns options with a rank"
        return self.lora_rank

    @property
    def alpha(self) -> float:
        return float(self.rank) if self.lora_alpha is None else self.lora_alpha

    @property
    def targets(self) -> tuple[str, ...]:
        """The names, or a regular expression alone; empty: the default."""
        given = self.lora_target_modules or ()
        given = [given] if isinstance(given, str) else given
        names = [name.strip() for text in given for name in text.split(",")]  # commas separate names, too
        return tuple(names if all(map(PLAIN_NAME.fullmatch, names)) else given)
