"""Configuration of DiT and Latte, with the keys of Open-Sora's configuration files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Optional

from opensora.errors import UserError
from opensora.models.stdit.config import SIZE_XL, SIZE_XL_2X2, FixedSizeConfig

TEXT, LABEL = "text", re.compile(r"label_([1-9]\d{0,6})")


@dataclass(frozen=True)
class DiTConfig(FixedSizeConfig):
    """Fields are the keys of config.json.

    Attributes:
        condition: "text", the pooled state of a CLIP text encoder, or "label_N", one of N classes.
        caption_channels: width of the pooled text state.
        no_temporal_pos_emb: no position embedding of frames, as for images.
    """

    learn_sigma: bool = True
    condition: str = TEXT
    caption_channels: int = 512
    model_max_length: int = 77

    fixed: ClassVar[dict] = FixedSizeConfig.fixed

    def __post_init__(self):
        super().__post_init__()
        if self.condition != TEXT and not LABEL.fullmatch(self.condition):
            raise UserError(f"condition {self.condition!r} should be 'text' or 'label_N' with the number N of classes")
        _, rows, columns = self.input_size
        if rows != columns:
            raise UserError(f"input_size {self.input_size} should have as many rows as columns")

    @property
    def classes(self) -> Optional[int]:
        """The number of classes; None if the condition is a text."""
        match = LABEL.fullmatch(self.condition)
        return int(match[1]) if match else None

    @property
    def out_channels(self) -> int:
        """Channels of the noise; with `learn_sigma` twice as many, to interpolate the log variance."""
        return 2 * self.in_channels if self.learn_sigma else self.in_channels


@dataclass(frozen=True)
class LatteConfig(DiTConfig):
    """Fields are the keys of config.json."""

    fixed: ClassVar[dict] = {**DiTConfig.fixed, "no_temporal_pos_emb": False}


# Published configurations by name, as keys of the configurations.
PRESETS = {"DiT-XL/2": SIZE_XL, "DiT-XL/2x2": SIZE_XL_2X2}
LATTE_PRESETS = {"Latte-XL/2": SIZE_XL, "Latte-XL/2x2": SIZE_XL_2X2}
