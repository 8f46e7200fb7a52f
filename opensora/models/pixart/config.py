"""Configurations of PixArt and PixArtMS, with the keys of Open-Sora's configuration files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from opensora.models.stdit.config import SIZE_XL, CaptionedConfig


@dataclass(frozen=True)
class PixArtConfig(CaptionedConfig):
    """Fields are the keys of config.json.

    Attributes:
        no_temporal_pos_emb: no position embedding of frames, as for images.
    """

    input_size: Sequence[int] = (1, 32, 32)

    @property
    def spatial_base(self) -> int:
        _, h, w = self.grid
        return math.isqrt(h * w)


@dataclass(frozen=True)
class PixArtMSConfig(PixArtConfig):
    """Fields are the keys of config.json. `input_size` only tells the number of patches."""

    width_multiple: ClassVar[int] = 12  # the embeddings of height, width and aspect ratio have a third of the width


# Published configurations by name, as keys of the configurations.
PRESETS = {"PixArt-XL/2": SIZE_XL}
MS_PRESETS = {"PixArtMS-XL/2": SIZE_XL}
