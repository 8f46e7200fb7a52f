"""Configuration of WFVAE, with the keys of the published config.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Optional

from opensora.config.options import check_choice
from opensora.errors import UserError
from opensora.models.common.video_blocks import NORM_TYPES, T_INTERPOLATIONS
from opensora.models.model_config import ModelConfig

L1_BLOCKS = {
    # (downsample block, its wavelet, upsample block, its wavelet): whether level 1 halves time
    ("Downsample", "HaarWaveletTransform2D", "Upsample", "InverseHaarWaveletTransform2D"): False,
    (
        "Spatial2xTime2x3DDownsample",
        "HaarWaveletTransform3D",
        "Spatial2xTime2x3DUpsample",
        "InverseHaarWaveletTransform3D",
    ): True,
}


@dataclass(frozen=True)
class WFVAEConfig(ModelConfig):
    """Fields are the keys of config.json; `scale` and `shift` hold one value for each latent channel.

    Raises:
        UserError: a value that this implementation does not support.
    """

    latent_dim: int = 8
    base_channels: int = 128
    encoder_num_resblocks: int = 2
    encoder_energy_flow_hidden_size: int = 64
    decoder_num_resblocks: int = 2
    decoder_energy_flow_hidden_size: int = 128
    attention_type: str = "AttnBlock3DFix"
    use_attention: bool = True
    dropout: float = 0.0
    norm_type: str = "groupnorm"
    t_interpolation: str = "nearest"
    connect_res_layer_num: int = 1
    scale: Optional[Sequence[float]] = None
    shift: Optional[Sequence[float]] = None
    l1_dowmsample_block: str = "Downsample"
    l1_downsample_wavelet: str = "HaarWaveletTransform2D"
    l2_dowmsample_block: str = "Spatial2xTime2x3DDownsample"
    l2_downsample_wavelet: str = "HaarWaveletTransform3D"
    l1_upsample_block: str = "Upsample"
    l1_upsample_wavelet: str = "InverseHaarWaveletTransform2D"
    l2_upsample_block: str = "Spatial2xTime2x3DUpsample"
    l2_upsample_wavelet: str = "InverseHaarWaveletTransform3D"

    default_scale: ClassVar[float] = 0.18215
    spatial_stride: ClassVar[int] = 8

    def __post_init__(self):
        check_choice("norm_type", self.norm_type, NORM_TYPES)
        check_choice("t_interpolation", self.t_interpolation, T_INTERPOLATIONS)
        check_choice("attention_type", self.attention_type, ("AttnBlock3DFix",))
        check_choice("level-1 blocks", self._l1_blocks, tuple(L1_BLOCKS))
        l2_blocks = (
            self.l2_dowmsample_block,
            self.l2_downsample_wavelet,
            self.l2_upsample_block,
            self.l2_upsample_wavelet,
        )
        check_choice("level-2 blocks", l2_blocks, tuple(blocks for blocks, temporal in L1_BLOCKS.items() if temporal))
        for name, value, default in (("scale", self.scale, self.default_scale), ("shift", self.shift, 0.0)):
            value = (default,) * self.latent_dim if value is None else tuple(value)
            if len(value) != self.latent_dim:
                raise UserError(f"{name} has {len(value)} values, but latent_dim is {self.latent_dim}")
            object.__setattr__(self, name, value)

    @property
    def _l1_blocks(self) -> tuple:
        return (self.l1_dowmsample_block, self.l1_downsample_wavelet, self.l1_upsample_block, self.l1_upsample_wavelet)

    @property
    def l1_is_temporal(self) -> bool:
        """Whether level 1 halves time too, which makes the temporal stride 8 instead of 4."""
        return L1_BLOCKS[self._l1_blocks]

    @property
    def temporal_stride(self) -> int:
        return 8 if self.l1_is_temporal else 4

    @property
    def streams_exactly(self) -> bool:
        """Whether chunks give the same result as the whole clip. With group norm, which averages over a chunk, not."""
        return self.norm_type == "layernorm"

    @property
    def decoder_overlap(self) -> int:
        """Number of latent frames that consecutive chunks of the decoder share.

        If the result depends on the chunks, they are those of the published model, which overlap by one frame.
        """
        return 0 if self.streams_exactly else 1

    @property
    def decoder_delays(self) -> tuple[int, int]:
        """Delays, in output frames, of the decoder's temporal upsampling at level 2 and at level 1.

        Linear interpolation needs a frame's successor; chunks that overlap already contain it.
        """
        return (
            int(self.streams_exactly and self.t_interpolation == "trilinear"),
            int(self.streams_exactly and self.l1_is_temporal),
        )
