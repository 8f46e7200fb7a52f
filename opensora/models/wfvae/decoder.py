"""The WFVAE decoder: a convolutional backbone with outputs for the wavelet coefficients of both levels.

Li et al. 2024, arXiv:2411.17459.
"""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn, ops

from opensora.models.common.layers import Conv2d, Upsample
from opensora.models.common.video_blocks import (
    AttnBlock3DFix,
    CausalConv3d,
    ResnetBlock3D,
    Spatial2xTime2x3DUpsample,
    StreamingSequential,
    normalize,
)
from opensora.models.wfvae.config import WFVAEConfig
from opensora.models.wfvae.wavelet import InverseHaarTransform2D, InverseHaarTransform3D
from opensora.ops.conv import conv2d
from opensora.ops.layout import concat, slice_axis, split, swap_frames_channels
from opensora.parallel.stream import LocalStream


class Decoder(nn.Cell):
    """Latents (B, latent_dim, 1 + n, H, W) -> video (B, 3, 1 + s n, 8H, 8W), where s is the stride in time.

    Also returns the wavelet coefficients of both levels. In a stream, the next chunk repeats `overlap` latent frames at
    the end of each chunk; the video frames of these are removed. Internally all tensors are (B, T, C, H, W). The
    wavelet transforms and their coefficients are float32.
    """

    def __init__(self, config: WFVAEConfig):
        super().__init__()
        base, flow = config.base_channels, config.decoder_energy_flow_hidden_size
        norm, dropout = config.norm_type, config.dropout
        temporal_l1 = config.l1_is_temporal
        overlap = config.decoder_overlap
        delay_l2, delay_l1 = config.decoder_delays
        overlap_l2 = 2 * overlap  # after the level-2 upsampling
        overlap_l1 = 2 * overlap_l2 if temporal_l1 else overlap_l2  # after the level-1 upsampling

        def res(in_channels, out_channels, overlap):
            return ResnetBlock3D(in_channels, out_channels, norm, dropout, overlap)

        def connection(out_channels, overlap):
            return StreamingSequential(
                [*[res(flow, flow, overlap) for _ in range(config.connect_res_layer_num)], Conv2d(flow, out_channels)]
            )

        self.conv_in = CausalConv3d(config.latent_dim, base * 4, overlap=overlap)
        self.mid = StreamingSequential(
            [
                res(base * 4, base * 4, overlap),
                *([AttnBlock3DFix(base * 4, norm)] if config.use_attention else []),
                res(base * 4, base * 4 + flow, overlap),
            ]
        )
        self.up2 = StreamingSequential(
            [
                *[res(base * 4, base * 4, overlap) for _ in range(config.decoder_num_resblocks)],
                Spatial2xTime2x3DUpsample(base * 4, config.t_interpolation, delay_l2, overlap),
                res(base * 4, base * 4 + flow, overlap_l2),
            ]
        )
        self.up1 = StreamingSequential(
            [
                *[res(base * (2 if i else 4), base * 2, overlap_l2) for i in range(config.decoder_num_resblocks)],
                Spatial2xTime2x3DUpsample(base * 2, "trilinear", delay_l1, overlap_l2)
                if temporal_l1
                else Upsample(base * 2),
                res(base * 2, base * 2, overlap_l1),
            ]
        )
        self.layer = StreamingSequential([res(base * (1 if i else 2), base, overlap_l1) for i in range(2)])
        self.connect_l1 = connection(24 if temporal_l1 else 12, overlap_l2)
        self.connect_l2 = connection(24, overlap)
        self.norm_out = normalize(base, norm, silu=True)
        self.conv_out = Conv2d(base, 24)
        self.inverse_wavelet_transform_out = InverseHaarTransform3D()
        self.inverse_wavelet_transform_l1 = InverseHaarTransform3D() if temporal_l1 else InverseHaarTransform2D()
        self.inverse_wavelet_transform_l2 = InverseHaarTransform3D()

        self.flow = flow
        self.overlap_frames = 2 * overlap_l1
        # Upsampling with a delay makes the backbone late; the parallel wavelet branch is delayed by as many frames.
        self.delay_line_l2 = DelayLine(delay_l2)
        self.delay_line_l1 = DelayLine(delay_l1)
        self.stream = LocalStream()

    def construct(self, z: Tensor, cache=None, last: bool = True):
        """Returns (video, level-1 and level-2 coefficients, new cache); `video_blocks` describes cache and last."""
        h, low, l1, l2, new_cache = self.backbone(z, cache, last)
        video = self.to_video(h, low, cache is None and self.stream.index == 0)
        if not last:
            video = slice_axis(video, 2, 0, video.shape[2] - self.overlap_frames)
        return video, l1, l2, new_cache

    def backbone(self, z: Tensor, cache=None, last: bool = True):
        """Returns (input of the last layer, low band of the video, level-1 and level-2 coefficients, new cache)."""
        first = cache is None and self.stream.index == 0
        cache_in, cache_mid, cache_up2, cache_up1, cache_layer, cache_l1, cache_l2, delayed_l1, delayed_l2 = (
            (None,) * 9 if cache is None else cache
        )

        h, cache_in = self.conv_in(swap_frames_channels(z), cache_in, last)
        h, cache_mid = self.mid(h, cache_mid, last)
        h, to_l2 = split(h, 2, h.shape[2] - self.flow)
        l2, cache_l2 = self.connect_l2(to_l2, cache_l2, last)
        l2 = l2.astype(ms.float32)
        low1, delayed_l2 = self.delay_line_l2(self.inverse_wavelet_transform_l2(l2, first), delayed_l2, last)

        h, cache_up2 = self.up2(h, cache_up2, last)
        h, to_l1 = split(h, 2, h.shape[2] - self.flow)
        l1, cache_l1 = self.connect_l1(to_l1, cache_l1, last)
        l1 = _add_to_low_band(l1.astype(ms.float32), low1)
        low, delayed_l1 = self.delay_line_l1(self.inverse_wavelet_transform_l1(l1, first), delayed_l1, last)

        h, cache_up1 = self.up1(h, cache_up1, last)
        h, cache_layer = self.layer(h, cache_layer, last)
        cache = cache_in, cache_mid, cache_up2, cache_up1, cache_layer, cache_l1, cache_l2, delayed_l1, delayed_l2
        return self.norm_out(h), low, swap_frames_channels(l1), swap_frames_channels(l2), () if last else cache

    def to_video(self, h: Tensor, low: Tensor, first: bool = True) -> Tensor:
        """The last layer and the inverse wavelet transform, to (B, 3, T, H, W)."""
        video = self.inverse_wavelet_transform_out(_add_to_low_band(self.conv_out(h).astype(ms.float32), low), first)
        return swap_frames_channels(video)


class LastLayer(nn.Cell):
    """The decoder's last layer as a function of its weight and its input: (B, T, C, H, W) -> (B, 3, T, H, W).

    What the low band adds to the video is left out.
    """

    def __init__(self, decoder: Decoder):
        super().__init__(auto_prefix=False)
        layer = decoder.conv_out
        self.weight, self.bias, self.padding = layer.weight, layer.bias, layer.padding
        self.to_video = decoder.inverse_wavelet_transform_out

    def construct(self, weight: Tensor, x: Tensor) -> Tensor:
        return swap_frames_channels(self.to_video(conv2d(x, weight, self.bias.astype(weight.dtype), 1, self.padding)))


class DelayLine(nn.Cell):
    """Delays a stream by `delay` frames: the last frames of a chunk are output at the start of the next one."""

    def __init__(self, delay: int):
        super().__init__()
        self.delay = delay
        self.stream = LocalStream()

    def construct(self, x: Tensor, cache=None, last: bool = True):
        if self.delay == 0:
            return x, ()
        end, new_cache = x.shape[1] - self.delay, ()
        if self.stream.is_shared or not last:
            cache, new_cache = self.stream.exchange_halo(x[:, end:], cache)
        if not last:
            x = x[:, :end]
        if cache is not None:
            x = ops.cat((cache, x), 1)
        return x, new_cache


def _add_to_low_band(coefficients: Tensor, low: Tensor) -> Tensor:
    """Adds the coarser level's output to the low band: the first three channels, one for each color."""
    own, rest = split(coefficients, 2, 3)
    return concat(own + low, rest, 2)
