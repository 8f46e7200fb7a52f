"""Configuration of LatteT2V, with the keys of the published config.json."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Optional

from opensora.errors import UserError
from opensora.models.dit.config import Transformer2DConfig

SCALE_SIZE = 64  # latents at which the spatial scale is 1


@dataclass(frozen=True)
class LatteConfig(Transformer2DConfig):
    """Open-Sora-Plan v1.0 and v1.1.

    Attributes:
        video_length: latent frames of a video; the model predicts no other length, except single images.
        use_rope: the key of v1.1 alone, by which its positions are distinguished from those of v1.0; true is not
            supported.
        rope_scaling_type, model_max_length: no effect.
    """

    num_attention_heads: int = 16
    attention_head_dim: int = 72
    in_channels: int = 4
    out_channels: Optional[int] = 8
    num_layers: int = 28
    cross_attention_dim: int = 1152
    video_length: int = 16
    use_rope: Optional[bool] = None
    rope_scaling_type: Optional[str] = None
    compress_kv_factor: int = 1
    model_max_length: Optional[int] = None
    interpolation_scale_1d: Optional[float] = None

    release: ClassVar[str] = "Open-Sora-Plan v1.0 and v1.1"
    fixed: ClassVar[dict] = {**Transformer2DConfig.fixed, "compress_kv_factor": 1, "interpolation_scale_1d": None}

    def __post_init__(self):
        super().__post_init__()
        if self.use_rope:
            raise UserError(f"use_rope True is not supported; all weights of {self.release} have False")
        self.training_size()

    @property
    def spatial_scale(self) -> int:
        """What positions in a frame are divided by."""
        return max(self.training_size()[0] // SCALE_SIZE, 1)

    @property
    def temporal_scale(self) -> int:
        """What the positions of frames are divided by."""
        if self.use_rope is None:  # v1.0
            return max(self.video_length // 5, 1)
        return max((self.video_length - self.video_length % 2) // 16, 1)


_SIZE_XL = {
    "num_layers": 28,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "caption_channels": 4096,
    "cross_attention_dim": 1152,
}
# Published configurations by name, as keys of `LatteConfig`; those of sample_size and video_length are of 65 frames of
# 512 x 512 pixels in v1.1.
PRESETS = {"LatteT2V-XL/122": {**_SIZE_XL, "sample_size": (64, 64), "video_length": 17, "use_rope": False}}
