"""Configuration of CausalVAE, with the keys of the published config.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from opensora.config.options import check_choice
from opensora.errors import UserError
from opensora.models.causal_vae.blocks import ATTENTIONS, CONVOLUTIONS, RESNET_BLOCKS
from opensora.models.causal_vae.resample import (
    SPACE_AND_TIME,
    SPATIAL_DOWNSAMPLE,
    SPATIAL_UPSAMPLE,
    TEMPORAL_DOWNSAMPLE,
    TEMPORAL_UPSAMPLE,
)
from opensora.models.causal_vae.tiling import PUBLISHED_TILING, Tiling
from opensora.models.model_config import ModelConfig


@dataclass(frozen=True)
class CausalVAEConfig(ModelConfig):
    """Fields are the keys of config.json. The defaults, the same in all three generations, make a model of v1.0.

    Lists have one value for each level, from the full resolution to that of the latents; "" means that the level has no
    such layer. The layers that change time in v1.0 have no weights. So weights load with any choice of them, and only
    the config.json tells which one the weights were trained with.

    Raises:
        UserError: a value that this implementation does not support, a list whose length differs from that of
            hidden_size_mult, or a decoder that does not undo the strides of the encoder.
    """

    hidden_size: int = 128
    z_channels: int = 4
    hidden_size_mult: Sequence[int] = (1, 2, 4, 4)
    attn_resolutions: Sequence[int] = ()
    dropout: float = 0.0
    double_z: bool = True
    embed_dim: int = 4
    num_res_blocks: int = 2
    q_conv: str = "CausalConv3d"
    use_quant_layer: bool = True
    encoder_conv_in: str = "CausalConv3d"
    encoder_conv_out: str = "CausalConv3d"
    encoder_attention: str = "AttnBlock3D"
    encoder_resnet_blocks: Sequence[str] = ("ResnetBlock3D",) * 4
    encoder_spatial_downsample: Sequence[str] = ("SpatialDownsample2x",) * 3 + ("",)
    encoder_temporal_downsample: Sequence[str] = ("", "TimeDownsample2x", "TimeDownsample2x", "")
    encoder_mid_resnet: str = "ResnetBlock3D"
    decoder_conv_in: str = "CausalConv3d"
    decoder_conv_out: str = "CausalConv3d"
    decoder_attention: str = "AttnBlock3D"
    decoder_resnet_blocks: Sequence[str] = ("ResnetBlock3D",) * 4
    decoder_spatial_upsample: Sequence[str] = ("",) + ("SpatialUpsample2x",) * 3
    decoder_temporal_upsample: Sequence[str] = ("", "", "TimeUpsample2x", "TimeUpsample2x")
    decoder_mid_resnet: str = "ResnetBlock3D"

    # The first three are of training; images of any size are encoded whatever `resolution` is.
    ignored: ClassVar[tuple] = ("lr", "loss_type", "loss_params", "resolution", "in_channels", "out_channels")
    fixed: ClassVar[dict] = {
        "attn_resolutions": (),
        "double_z": True,
        "q_conv": "CausalConv3d",
        "use_quant_layer": True,
    }
    choices: ClassVar[dict] = {
        "encoder_conv_in": CONVOLUTIONS,
        "encoder_conv_out": CONVOLUTIONS,
        "encoder_attention": ATTENTIONS,
        "encoder_mid_resnet": RESNET_BLOCKS,
        "decoder_conv_in": CONVOLUTIONS,
        "decoder_conv_out": CONVOLUTIONS,
        "decoder_attention": ATTENTIONS,
        "decoder_mid_resnet": RESNET_BLOCKS,
    }
    choices_of_levels: ClassVar[dict] = {
        "encoder_resnet_blocks": tuple(RESNET_BLOCKS),
        "encoder_spatial_downsample": (*SPATIAL_DOWNSAMPLE, ""),
        "encoder_temporal_downsample": (*TEMPORAL_DOWNSAMPLE, ""),
        "decoder_resnet_blocks": tuple(RESNET_BLOCKS),
        "decoder_spatial_upsample": (*SPATIAL_UPSAMPLE, ""),
        "decoder_temporal_upsample": (*TEMPORAL_UPSAMPLE, ""),
    }
    default_scale: ClassVar[float] = 0.18215
    streams_exactly: ClassVar[bool] = False

    def __post_init__(self):
        for name, value in vars(self).items():
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
        for name, value in self.fixed.items():
            if getattr(self, name) != value:
                raise UserError(f"{name} {getattr(self, name)!r} is not supported; published models have {value!r}")
        for name, choices in self.choices.items():
            check_choice(name, getattr(self, name), tuple(choices))
        levels = len(self.hidden_size_mult)
        for name, choices in self.choices_of_levels.items():
            values = getattr(self, name)
            if len(values) != levels:
                raise UserError(f"{name} has {len(values)} values, but hidden_size_mult has {levels}")
            for value in values:
                check_choice(name, value, choices)
        down = self.spatial_stride, self.temporal_stride
        up = _strides(self.decoder_spatial_upsample, self.decoder_temporal_upsample)
        if up != down:
            raise UserError(
                "the encoder divides space by {} and time by {}, but the decoder multiplies them by {} and {}: "
                "make decoder_spatial_upsample and decoder_temporal_upsample match".format(*down, *up)
            )

    @property
    def level_channels(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.hidden_size * factor for factor in self.hidden_size_mult)

    @property
    def latent_dim(self) -> int:
        """Channels of the latents."""
        return self.embed_dim

    @property
    def spatial_stride(self) -> int:
        return _strides(self.encoder_spatial_downsample, self.encoder_temporal_downsample)[0]

    @property
    def temporal_stride(self) -> int:
        return _strides(self.encoder_spatial_downsample, self.encoder_temporal_downsample)[1]

    @property
    def tiling(self) -> Tiling:
        """The default tiling of the generation that has such layers."""
        if any(name in SPACE_AND_TIME for name in self.encoder_spatial_downsample):
            return PUBLISHED_TILING["v1.2"]
        return PUBLISHED_TILING["v1.0" if self.encoder_attention == "AttnBlock3D" else "v1.1"]


def _strides(spatial: Sequence[str], temporal: Sequence[str]) -> tuple[int, int]:
    """The factors by which layers of these names change space and time."""
    in_space = sum(name != "" for name in spatial)
    in_time = sum(name != "" for name in temporal) + sum(name in SPACE_AND_TIME for name in spatial)
    return 2**in_space, 2**in_time
