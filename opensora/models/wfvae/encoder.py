"""The WFVAE encoder: wavelet coefficients of two levels enter a convolutional backbone at their scales ("energy flow").

Li et al. 2024, arXiv:2411.17459.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn

from opensora.models.common.layers import Conv2d, Downsample
from opensora.models.common.video_blocks import (
    AttnBlock3DFix,
    CausalConv3d,
    ResnetBlock2D,
    ResnetBlock3D,
    Spatial2xTime2x3DDownsample,
    StreamingSequential,
    normalize,
)
from opensora.models.wfvae.config import WFVAEConfig
from opensora.models.wfvae.wavelet import HaarTransform2D, HaarTransform3D
from opensora.ops.layout import concat, slice_axis, swap_frames_channels


class Encoder(nn.Cell):
    """Video (B, 3, 1 + s n, H, W) -> moments (B, 2 latent_dim, 1 + n, H/8, W/8), where s is the stride in time.

    Also returns the wavelet coefficients of both levels, which the training loss compares with the decoder's.
    Internally all tensors are (B, T, C, H, W). The wavelet transforms and their coefficients are float32.
    """

    def __init__(self, config: WFVAEConfig):
        super().__init__()
        base, flow = config.base_channels, config.encoder_energy_flow_hidden_size
        norm, dropout = config.norm_type, config.dropout
        temporal_l1 = config.l1_is_temporal
        self.wavelet_transform_in = HaarTransform3D()
        self.wavelet_transform_l1 = HaarTransform3D() if temporal_l1 else HaarTransform2D()
        self.wavelet_transform_l2 = HaarTransform3D()
        self.connect_l1 = Conv2d(24 if temporal_l1 else 12, flow)
        self.connect_l2 = Conv2d(24, flow)
        self.down1 = StreamingSequential(
            [
                Conv2d(24, base),
                *[ResnetBlock2D(base, base, norm, dropout) for _ in range(config.encoder_num_resblocks)],
                Spatial2xTime2x3DDownsample(base) if temporal_l1 else Downsample(base),
            ]
        )
        self.down2 = StreamingSequential(
            [
                Conv2d(base + flow, base * 2),
                *[ResnetBlock3D(base * 2, base * 2, norm, dropout) for _ in range(config.encoder_num_resblocks)],
                Spatial2xTime2x3DDownsample(base * 2),
            ]
        )
        self.mid = StreamingSequential(
            [
                ResnetBlock3D(base * 2 + flow, base * 4, norm, dropout),
                *([AttnBlock3DFix(base * 4, norm)] if config.use_attention else []),
                ResnetBlock3D(base * 4, base * 4, norm, dropout),
            ]
        )
        self.norm_out = normalize(base * 4, norm, silu=True)
        self.conv_out = CausalConv3d(base * 4, config.latent_dim * 2)

    def construct(self, x: Tensor, cache=None, last: bool = True):
        """Returns (moments, level-1 and level-2 coefficients, new cache); `video_blocks` describes cache and last."""
        first = cache is None
        cache_down1, cache_down2, cache_mid, cache_out = (None,) * 4 if first else cache

        coefficients = self.wavelet_transform_in(swap_frames_channels(x.astype(ms.float32)), first)
        l1 = self.wavelet_transform_l1(slice_axis(coefficients, 2, 0, 3), first)
        l2 = self.wavelet_transform_l2(slice_axis(l1, 2, 0, 3), first)

        h, cache_down1 = self.down1(coefficients, cache_down1, last)
        h = concat(h, self.connect_l1(l1), 2)
        h, cache_down2 = self.down2(h, cache_down2, last)
        h = concat(h, self.connect_l2(l2), 2)
        h, cache_mid = self.mid(h, cache_mid, last)
        moments, cache_out = self.conv_out(self.norm_out(h), cache_out, last)
        cache = () if last else (cache_down1, cache_down2, cache_mid, cache_out)
        return swap_frames_channels(moments), swap_frames_channels(l1), swap_frames_channels(l2), cache
