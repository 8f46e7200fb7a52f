"""Encoder and decoder, on independent frames (1, F, C, H, W); parameters have diffusers' names.

Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", appendix G.
"""

from __future__ import annotations

from mindspore import Tensor, nn

from opensora.models.autoencoder_kl.config import AutoencoderKLConfig
from opensora.models.common.layers import NO_PADDING, Conv2d, Downsample, GroupNorm, Linear, Upsample
from opensora.ops.attention import attention
from opensora.ops.layout import permute


class ResnetBlock2D(nn.Cell):
    """Residual block of twice (norm, SiLU, convolution); a 1x1 shortcut if the channel count changes."""

    def __init__(self, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.norm1 = GroupNorm(in_channels, groups, per_frame=True, silu=True)
        self.conv1 = Conv2d(in_channels, out_channels)
        self.norm2 = GroupNorm(out_channels, groups, per_frame=True, silu=True)
        self.conv2 = Conv2d(out_channels, out_channels)
        self.conv_shortcut = nn.Identity()
        if in_channels != out_channels:
            self.conv_shortcut = Conv2d(in_channels, out_channels, 1, padding=NO_PADDING)

    def construct(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.norm2(h))
        return self.conv_shortcut(x) + h


class Attention(nn.Cell):
    """Residual single-head self-attention over the positions of each frame."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.group_norm = GroupNorm(channels, groups, per_frame=True)
        self.to_q = Linear(channels, channels)
        self.to_k = Linear(channels, channels)
        self.to_v = Linear(channels, channels)
        self.to_out = nn.CellList([Linear(channels, channels)])

    def construct(self, x: Tensor) -> Tensor:
        _, f, c, h, w = x.shape
        tokens = permute(self.group_norm(x).reshape(f, 1, c, h * w), (0, 3, 1, 2))  # F HW 1 C
        y = self.to_out[0](attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens)))
        return x + permute(y, (0, 2, 3, 1)).reshape(x.shape)


class MidBlock(nn.Cell):
    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.attentions = nn.CellList([Attention(channels, groups)])
        self.resnets = nn.CellList([ResnetBlock2D(channels, channels, groups) for _ in range(2)])

    def construct(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class DownBlock(nn.Cell):
    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, halves: bool):
        super().__init__()
        self.resnets = nn.SequentialCell(
            [ResnetBlock2D(out_channels if i else in_channels, out_channels, groups) for i in range(layers)]
        )
        self.downsamplers = nn.SequentialCell([Downsample(out_channels)] if halves else [])

    def construct(self, x: Tensor) -> Tensor:
        return self.downsamplers(self.resnets(x))


class UpBlock(nn.Cell):
    def __init__(self, in_channels: int, out_channels: int, layers: int, groups: int, doubles: bool):
        super().__init__()
        self.resnets = nn.SequentialCell(
            [ResnetBlock2D(out_channels if i else in_channels, out_channels, groups) for i in range(layers)]
        )
        self.upsamplers = nn.SequentialCell([Upsample(out_channels)] if doubles else [])

    def construct(self, x: Tensor) -> Tensor:
        return self.upsamplers(self.resnets(x))


class Encoder(nn.Cell):
    """Frames (1, F, 3, H, W) -> moments of their latents (1, F, 2 C, h, w), before `quant_conv`."""

    def __init__(self, config: AutoencoderKLConfig):
        super().__init__()
        channels, groups = tuple(config.block_out_channels), config.norm_num_groups
        last = len(channels) - 1
        self.conv_in = Conv2d(config.in_channels, channels[0])
        self.down_blocks = nn.SequentialCell(
            [
                DownBlock(channels[max(i - 1, 0)], channels[i], config.layers_per_block, groups, halves=i < last)
                for i in range(last + 1)
            ]
        )
        self.mid_block = MidBlock(channels[-1], groups)
        self.conv_norm_out = GroupNorm(channels[-1], groups, per_frame=True, silu=True)
        self.conv_out = Conv2d(channels[-1], 2 * config.latent_channels)

    def construct(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.down_blocks(self.conv_in(x)))
        return self.conv_out(self.conv_norm_out(x))


class Decoder(nn.Cell):
    """Latents (1, F, C, h, w), after `post_quant_conv`, -> frames (1, F, 3, H, W)."""

    def __init__(self, config: AutoencoderKLConfig):
        super().__init__()
        channels, groups = tuple(config.block_out_channels)[::-1], config.norm_num_groups
        last = len(channels) - 1
        self.conv_in = Conv2d(config.latent_channels, channels[0])
        self.mid_block = MidBlock(channels[0], groups)
        self.up_blocks = nn.SequentialCell(
            [
                UpBlock(channels[max(i - 1, 0)], channels[i], config.layers_per_block + 1, groups, doubles=i < last)
                for i in range(last + 1)
            ]
        )
        self.conv_norm_out = GroupNorm(channels[-1], groups, per_frame=True, silu=True)
        self.conv_out = Conv2d(channels[-1], config.out_channels)

    def construct(self, z: Tensor) -> Tensor:
        x = self.up_blocks(self.mid_block(self.conv_in(z)))
        return self.conv_out(self.conv_norm_out(x))
