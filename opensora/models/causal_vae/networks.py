"""Encoder and decoder, made of the blocks that the configuration names, on (B, T, C, H, W).

They process a whole clip at a time, because the group norms average over all of its frames. Each returns its output and
an empty cache.
"""

from __future__ import annotations

from typing import Union

from mindspore import Tensor, nn

from opensora.models.causal_vae.blocks import ATTENTIONS, CONVOLUTIONS, RESNET_BLOCKS
from opensora.models.causal_vae.config import CausalVAEConfig
from opensora.models.causal_vae.resample import (
    SPATIAL_DOWNSAMPLE,
    SPATIAL_UPSAMPLE,
    TEMPORAL_DOWNSAMPLE,
    TEMPORAL_UPSAMPLE,
)
from opensora.models.common.layers import Conv2d, GroupNorm
from opensora.models.common.video_blocks import CausalConv3d, StreamingSequential
from opensora.ops.conv import conv2d, conv3d
from opensora.ops.layout import swap_frames_channels

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

    def with_last_input(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The video and the input of the last layer, (B, T, C, H, W)."""
        last_input = x
        for cell, streams in zip(self.cell_list, self.streaming):
            last_input, x = x, cell(x)[0] if streams else cell(x)
        return x, last_input


class LastLayer(nn.Cell):
    """The decoder's last layer as a function of its weight and its input: (B, T, C, H, W) -> (B, 3, T, H, W)."""

    def __init__(self, layer: Union[CausalConv3d, Conv2d]):
        super().__init__(auto_prefix=False)
        self.is_causal = isinstance(layer, CausalConv3d)
        self.convolution = layer.conv if isinstance(layer, CausalConv3d) else layer
        self.weight, self.bias, self.padding = self.convolution.weight, self.convolution.bias, self.convolution.padding

    def construct(self, weight: Tensor, x: Tensor) -> Tensor:
        bias = self.bias.astype(weight.dtype)
        if self.is_causal:
            y = conv3d(x, weight, bias, 1, self.padding, None, 2)
        else:
            y = conv2d(x, weight, bias, 1, self.padding)
        return swap_frames_channels(y)


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
