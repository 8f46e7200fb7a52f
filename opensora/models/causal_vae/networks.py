"""Encoder and decoder, made of the blocks that the configuration names, on (B, T, C, H, W).

They process a whole clip at a time, because the group norms average over all of its frames. Each returns its output and
an empty cache.
"""

from __future__ import annotations

from mindspore import nn

from opensora.models.causal_vae.blocks import ATTENTIONS, CONVOLUTIONS, RESNET_BLOCKS
from opensora.models.causal_vae.config import CausalVAEConfig
from opensora.models.causal_vae.resample import (
    SPATIAL_DOWNSAMPLE,
    SPATIAL_UPSAMPLE,
    TEMPORAL_DOWNSAMPLE,
    TEMPORAL_UPSAMPLE,
)
from opensora.models.common.layers import GroupNorm
from opensora.models.common.video_blocks import StreamingSequential

NORM = "groupnorm"


class Encoder(StreamingSequential):
    """Video (B, T, 3, H, W) -> moments (B, t, 2 z_channels, h, w), before `quant_conv`."""

    def __init__(self, config: CausalVAEConfig):
        channels = config.level_channels
        levels = []
        for i, (before, after) in enumerate(zip((config.hidden_size, *channels), channels)):
            level = _resnet_blocks(
                config.encoder_resnet_blocks[i], before, after, config.num_res_blocks, config.dropout
            )
            spatial, temporal = config.encoder_spatial_downsample[i], config.encoder_temporal_downsample[i]
            if spatial:
                level["downsample"] = SPATIAL_DOWNSAMPLE[spatial](after)
            if temporal:
                level["time_downsample"] = TEMPORAL_DOWNSAMPLE[temporal](after)
            levels.append(StreamingSequential(level))
        super().__init__(
            {
                "conv_in": CONVOLUTIONS[config.encoder_conv_in](3, config.hidden_size),
                "down": StreamingSequential(levels),
                "mid": _mid(config.encoder_mid_resnet, config.encoder_attention, channels[-1], config.dropout),
                "norm_out": GroupNorm(channels[-1], silu=True),
                "conv_out": CONVOLUTIONS[config.encoder_conv_out](channels[-1], 2 * config.z_channels),
            }
        )


class Decoder(StreamingSequential):
    """Latents (B, t, z_channels, h, w), after `post_quant_conv`, -> video (B, T, 3, H, W)."""

    def __init__(self, config: CausalVAEConfig):
        channels = config.level_channels
        levels = {}  # by index, which is 0 for the full resolution; the coarsest comes first
        for i in reversed(range(len(channels))):
            before, after = channels[min(i + 1, len(channels) - 1)], channels[i]
            count = config.num_res_blocks + 1
            level = _resnet_blocks(config.decoder_resnet_blocks[i], before, after, count, config.dropout)
            spatial, temporal = config.decoder_spatial_upsample[i], config.decoder_temporal_upsample[i]
            if spatial:
                level["upsample"] = SPATIAL_UPSAMPLE[spatial](after)
            if temporal:
                level["time_upsample"] = TEMPORAL_UPSAMPLE[temporal](after)
            levels[str(i)] = StreamingSequential(level)
        super().__init__(
            {
                "conv_in": CONVOLUTIONS[config.decoder_conv_in](config.z_channels, channels[-1]),
                "mid": _mid(config.decoder_mid_resnet, config.decoder_attention, channels[-1], config.dropout),
                "up": StreamingSequential(levels),
                "norm_out": GroupNorm(channels[0], silu=True),
                "conv_out": CONVOLUTIONS[config.decoder_conv_out](channels[0], 3),
            }
        )


def _resnet_blocks(name: str, before: int, after: int, count: int, dropout: float) -> dict[str, nn.Cell]:
    """The residual blocks of a level, from `before` to `after` channels, under their name in the level."""
    block = RESNET_BLOCKS[name]
    return {"block": StreamingSequential([block(after if i else before, after, NORM, dropout) for i in range(count)])}


def _mid(resnet: str, attention: str, channels: int, dropout: float) -> nn.Cell:
    block = RESNET_BLOCKS[resnet]
    return StreamingSequential(
        {
            "block_1": block(channels, channels, NORM, dropout),
            "attn_1": ATTENTIONS[attention](channels, NORM),
            "block_2": block(channels, channels, NORM, dropout),
        }
    )
