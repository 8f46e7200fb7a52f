"""WFVAE with layer norm and trilinear interpolation, on (B, C, T, H, W)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HADAMARD_2 = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
HADAMARD_4 = torch.kron(HADAMARD_2, HADAMARD_2) / 2
HADAMARD_8 = torch.kron(HADAMARD_2, torch.kron(HADAMARD_2, HADAMARD_2)) * 0.3536


def by_frames(function, x: Tensor) -> Tensor:
    """Applies a function of images (B T, C, H, W) to each frame of (B, C, T, H, W)."""
    y = function(x.transpose(1, 2).flatten(0, 1))
    return y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)


class HaarTransform(nn.Module):
    """Wavelet sub-bands of a video, (B, C, T, H, W) -> (B, bands C, ...), in three dimensions or frame by frame."""

    def __init__(self, in_time: bool):
        super().__init__()
        filters = HADAMARD_8.reshape(8, 1, 2, 2, 2) if in_time else HADAMARD_4.reshape(4, 1, 1, 2, 2).mT
        self.register_buffer("filters", filters.contiguous(), persistent=False)
        self.bands = len(filters)
        self.stride = tuple(filters.shape[2:])

    def forward(self, x: Tensor) -> Tensor:
        b, c = x.shape[:2]
        if self.stride[0] == 2:
            x = torch.cat((x[:, :, :1], x), 2)
        y = F.conv3d(x.flatten(0, 1).unsqueeze(1), self.filters, stride=self.stride)  # (B C) bands T H W
        return y.unflatten(0, (b, c)).transpose(1, 2).flatten(1, 2)

    def inverse(self, y: Tensor) -> Tensor:
        b = y.shape[0]
        y = y.unflatten(1, (self.bands, -1)).transpose(1, 2)  # B C bands T H W
        x = F.conv_transpose3d(y.flatten(0, 1), self.filters, stride=self.stride).squeeze(1).unflatten(0, (b, -1))
        return x[:, :, 1:] if self.stride[0] == 2 else x


class LayerNorm(nn.Module):
    """LayerNorm over the channels of a video."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.movedim(1, -1)).movedim(-1, 1)


class Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return by_frames(super().forward, x)


class CausalConv3d(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, padding: int = 1):
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 3, stride, (0, padding, padding))

    def forward(self, x: Tensor) -> Tensor:
        first = x[:, :, :1]
        return self.conv(torch.cat((first, first, x), 2))


class PointwiseConv3d(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class ResnetBlock2D(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = LayerNorm(channels)
        self.conv1 = Conv2d(channels, channels, 3, padding=1)
        self.norm2 = LayerNorm(channels)
        self.conv2 = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(h)))


class ResnetBlock3D(nn.Module):
    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = LayerNorm(in_channels)
        self.conv1 = CausalConv3d(in_channels, out_channels)
        self.norm2 = LayerNorm(out_channels)
        self.conv2 = CausalConv3d(out_channels, out_channels)
        self.nin_shortcut = PointwiseConv3d(in_channels, out_channels) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class AttnBlock3DFix(nn.Module):
    """Single-head attention within each frame."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = LayerNorm(channels)
        self.q = PointwiseConv3d(channels, channels)
        self.k = PointwiseConv3d(channels, channels)
        self.v = PointwiseConv3d(channels, channels)
        self.proj_out = PointwiseConv3d(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        b, c, t, h, w = x.shape
        y = self.norm(x)
        q, k, v = (z.permute(0, 2, 3, 4, 1).reshape(b * t, h * w, c) for z in (self.q(y), self.k(y), self.v(y)))
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(y.reshape(b, t, h, w, c).permute(0, 4, 1, 2, 3))


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Spatial2xTime2x3DDownsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = CausalConv3d(channels, channels, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest"))


class Spatial2xTime2x3DUpsample(nn.Module):
    """Doubles T, H and W, except that the first frame is not doubled."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = CausalConv3d(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        first = F.interpolate(x[:, :, :1], scale_factor=(1, 2, 2), mode="trilinear")
        if x.shape[2] == 1:
            return self.conv(first)
        return self.conv(torch.cat((first, F.interpolate(x[:, :, 1:], scale_factor=(2, 2, 2), mode="trilinear")), 2))


class Encoder(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        base, flow = config["base_channels"], config["encoder_energy_flow_hidden_size"]
        blocks = range(config["encoder_num_resblocks"])
        self.wavelet_transform_in = HaarTransform(in_time=True)
        self.wavelet_transform_l1 = HaarTransform(in_time=False)
        self.wavelet_transform_l2 = HaarTransform(in_time=True)
        self.connect_l1 = Conv2d(12, flow, 3, padding=1)
        self.connect_l2 = Conv2d(24, flow, 3, padding=1)
        self.down1 = nn.Sequential(
            Conv2d(24, base, 3, padding=1), *(ResnetBlock2D(base) for _ in blocks), Downsample(base)
        )
        self.down2 = nn.Sequential(
            Conv2d(base + flow, 2 * base, 3, padding=1),
            *(ResnetBlock3D(2 * base, 2 * base) for _ in blocks),
            Spatial2xTime2x3DDownsample(2 * base),
        )
        self.mid = nn.Sequential(
            ResnetBlock3D(2 * base + flow, 4 * base), AttnBlock3DFix(4 * base), ResnetBlock3D(4 * base, 4 * base)
        )
        self.norm_out = LayerNorm(4 * base)
        self.conv_out = CausalConv3d(4 * base, 2 * config["latent_dim"])

    def forward(self, x: Tensor) -> Tensor:
        coefficients = self.wavelet_transform_in(x)
        l1 = self.wavelet_transform_l1(coefficients[:, :3])
        l2 = self.wavelet_transform_l2(l1[:, :3])
        h = torch.cat((self.down1(coefficients), self.connect_l1(l1)), 1)
        h = torch.cat((self.down2(h), self.connect_l2(l2)), 1)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        base, flow = config["base_channels"], config["decoder_energy_flow_hidden_size"]
        count = config["decoder_num_resblocks"]

        def connection(out_channels: int) -> nn.Sequential:
            return nn.Sequential(
                *(ResnetBlock3D(flow, flow) for _ in range(config["connect_res_layer_num"])),
                Conv2d(flow, out_channels, 3, padding=1),
            )

        self.conv_in = CausalConv3d(config["latent_dim"], 4 * base)
        self.mid = nn.Sequential(
            ResnetBlock3D(4 * base, 4 * base), AttnBlock3DFix(4 * base), ResnetBlock3D(4 * base, 4 * base + flow)
        )
        self.up2 = nn.Sequential(
            *(ResnetBlock3D(4 * base, 4 * base) for _ in range(count)),
            Spatial2xTime2x3DUpsample(4 * base),
            ResnetBlock3D(4 * base, 4 * base + flow),
        )
        self.up1 = nn.Sequential(
            *(ResnetBlock3D((2 if i else 4) * base, 2 * base) for i in range(count)),
            Upsample(2 * base),
            ResnetBlock3D(2 * base, 2 * base),
        )
        self.layer = nn.Sequential(ResnetBlock3D(2 * base, base), ResnetBlock3D(base, base))
        self.connect_l1 = connection(12)
        self.connect_l2 = connection(24)
        self.norm_out = LayerNorm(base)
        self.conv_out = Conv2d(base, 24, 3, padding=1)
        self.wavelet_transform_out = HaarTransform(in_time=True)
        self.wavelet_transform_l1 = HaarTransform(in_time=False)
        self.wavelet_transform_l2 = HaarTransform(in_time=True)
        self.flow = flow

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        low = self.wavelet_transform_l2.inverse(self.connect_l2(h[:, -self.flow :]))
        h = self.up2(h[:, : -self.flow])
        l1 = self.connect_l1(h[:, -self.flow :])
        low = self.wavelet_transform_l1.inverse(torch.cat((l1[:, :3] + low, l1[:, 3:]), 1))
        h = self.layer(self.up1(h[:, : -self.flow]))
        h = self.conv_out(F.silu(self.norm_out(h)))
        return self.wavelet_transform_out.inverse(torch.cat((h[:, :3] + low, h[:, 3:]), 1))


class WFVAE(nn.Module):
    """Videos (B, 3, 1 + 4n, H, W) to moments (B, 2 latent_dim, 1 + n, H/8, W/8), and latents to videos."""

    def __init__(self, config: dict):
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
