"""The decoder: a convolutional backbone that emits wavelet coefficients at both levels on its way to the video."""

from __future__ import annotations

from mindspore import Tensor, nn

from opensora.models.common.layers import Conv2d, Upsample
from opensora.models.wfvae.blocks import (
    AttnBlock3DFix,
    CausalConv3d,
    Chain,
    ResnetBlock3D,
    Spatial2xTime2x3DUpsample,
    Wait,
    normalize,
)
from opensora.models.wfvae.wavelet import InverseHaarTransform2D, InverseHaarTransform3D
from opensora.ops.layout import concat, slice_axis, split, swap_frames_channels
from opensora.parallel.stream import LocalStream


class Decoder(nn.Cell):
    """Latents (B, latent_dim, 1 + n, H, W) -> video (B, 3, 1 + s n, 8H, 8W), where s is the stride in time.

    Also returns the wavelet coefficients of both levels. In a stream, `resent` latent frames at the end of each
    chunk come again with the next one; their video frames are cut off.
    """

    def __init__(self, config):
        super().__init__()
        base, flow = config.base_channels, config.decoder_energy_flow_hidden_size
        norm, dropout = config.norm_type, config.dropout
        temporal_l1 = config.l1_is_temporal
        resent = config.decoder_resent
        delay_l2, delay_l1 = config.decoder_delays
        resent_l2 = 2 * resent  # after the level-2 upsampling
        resent_l1 = 2 * resent_l2 if temporal_l1 else resent_l2  # after the level-1 upsampling

        def res(inside, outside, again):
            return ResnetBlock3D(inside, outside, norm, dropout, again)

        def connection(out_channels, again):
            return Chain(
                [*[res(flow, flow, again) for _ in range(config.connect_res_layer_num)], Conv2d(flow, out_channels)]
            )

        self.conv_in = CausalConv3d(config.latent_dim, base * 4, resent=resent)
        self.mid = Chain(
            [
                res(base * 4, base * 4, resent),
                *([AttnBlock3DFix(base * 4, norm)] if config.use_attention else []),
                res(base * 4, base * 4 + flow, resent),
            ]
        )
        self.up2 = Chain(
            [
                *[res(base * 4, base * 4, resent) for _ in range(config.decoder_num_resblocks)],
                Spatial2xTime2x3DUpsample(base * 4, config.t_interpolation, delay_l2, resent),
                res(base * 4, base * 4 + flow, resent_l2),
            ]
        )
        self.up1 = Chain(
            [
                *[res(base * (2 if i else 4), base * 2, resent_l2) for i in range(config.decoder_num_resblocks)],
                Spatial2xTime2x3DUpsample(base * 2, "trilinear", delay_l1, resent_l2)
                if temporal_l1
                else Upsample(base * 2),
                res(base * 2, base * 2, resent_l1),
            ]
        )
        self.layer = Chain([res(base * (1 if i else 2), base, resent_l1) for i in range(2)])
        self.connect_l1 = connection(24 if temporal_l1 else 12, resent_l2)
        self.connect_l2 = connection(24, resent)
        self.norm_out = normalize(base, norm, silu=True)
        self.conv_out = Conv2d(base, 24)
        self.inverse_wavelet_transform_out = InverseHaarTransform3D()
        self.inverse_wavelet_transform_l1 = InverseHaarTransform3D() if temporal_l1 else InverseHaarTransform2D()
        self.inverse_wavelet_transform_l2 = InverseHaarTransform3D()

        self.flow = flow
        self.resent_frames = 2 * resent_l1
        # An upsampling that holds a frame back makes the backbone late; the wavelet branch beside it waits as long.
        self.wait_l2 = Wait(delay_l2)
        self.wait_l1 = Wait(delay_l1)
        self.stream = LocalStream()

    def construct(self, z: Tensor, past=None, last: bool = True):
        """Returns (video, level-1 coefficients, level-2 coefficients, past); inside, frames come before channels."""
        h, low, l1, l2, new_past = self.backbone(z, past, last)
        video = self.to_video(h, low, past is None and self.stream.index == 0)
        if not last:
            video = slice_axis(video, 2, 0, video.shape[2] - self.resent_frames)
        return video, l1, l2, new_past

    def backbone(self, z: Tensor, past=None, last: bool = True):
        """What enters the last layer, the low band of the video, both levels' coefficients, past."""
        first = past is None and self.stream.index == 0
        (past_in, past_mid, past_up2, past_up1, past_layer, past_connect1, past_connect2, waiting1, waiting2) = (
            (None,) * 9 if past is None else past
        )

        h, past_in = self.conv_in(swap_frames_channels(z), past_in, last)
        h, past_mid = self.mid(h, past_mid, last)
        h, to_l2 = split(h, 2, h.shape[2] - self.flow)
        l2, past_connect2 = self.connect_l2(to_l2, past_connect2, last)
        low1, waiting2 = self.wait_l2(self.inverse_wavelet_transform_l2(l2, first), waiting2, last)

        h, past_up2 = self.up2(h, past_up2, last)
        h, to_l1 = split(h, 2, h.shape[2] - self.flow)
        l1, past_connect1 = self.connect_l1(to_l1, past_connect1, last)
        l1 = _add_to_low_band(l1, low1)
        low, waiting1 = self.wait_l1(self.inverse_wavelet_transform_l1(l1, first), waiting1, last)

        h, past_up1 = self.up1(h, past_up1, last)
        h, past_layer = self.layer(h, past_layer, last)
        past = (
            ()
            if last
            else (past_in, past_mid, past_up2, past_up1, past_layer, past_connect1, past_connect2, waiting1, waiting2)
        )
        return self.norm_out(h), low, swap_frames_channels(l1), swap_frames_channels(l2), past

    def to_video(self, h: Tensor, low: Tensor, first: bool = True) -> Tensor:
        """The last layer, and the wavelet transform back to pixels."""
        video = self.inverse_wavelet_transform_out(_add_to_low_band(self.conv_out(h), low), first)
        return swap_frames_channels(video)


def _add_to_low_band(coefficients: Tensor, low: Tensor) -> Tensor:
    """The first three channels, the low band of the three colours, plus what the coarser level gives for them."""
    own, rest = split(coefficients, 2, 3)
    return concat(own + low, rest, 2)
