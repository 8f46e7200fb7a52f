"""The blocks that a config.json names, on (B, T, C, H, W)."""

from __future__ import annotations

from mindspore import Tensor

from opensora.models.common.layers import Conv2d
from opensora.models.common.video_blocks import AttnBlock3DFix, CausalConv3d, ResnetBlock2D, ResnetBlock3D
from opensora.ops.layout import swap_frames_channels


class AttnBlock3D(AttnBlock3DFix):
    """The attention of v1.0, which reshapes (B, C, T, H, W) to (B T, C, H W) without moving T before C.

    Hence each of the T items that attend to themselves mixes channels of several frames. The published weights were
    trained with this. For one frame it equals `AttnBlock3DFix`.
    """

    def tokens(self, x: Tensor) -> Tensor:
        return super().tokens(swap_frames_channels(x).reshape(x.shape))

    def frames(self, tokens: Tensor, shape: tuple) -> Tensor:
        b, t, c, h, w = shape
        return swap_frames_channels(super().frames(tokens, shape).reshape(b, c, t, h, w))


CONVOLUTIONS = {"CausalConv3d": CausalConv3d, "Conv2d": Conv2d}
RESNET_BLOCKS = {"ResnetBlock3D": ResnetBlock3D, "ResnetBlock2D": ResnetBlock2D}
ATTENTIONS = {"AttnBlock3D": AttnBlock3D, "AttnBlock3DFix": AttnBlock3DFix}
