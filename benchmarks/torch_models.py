"""The benchmarked models in PyTorch, as one writes them there: what the project's own are compared with.

Names of weights are the published ones. Only what `cases.py` configures is here: WFVAE with layer norm and trilinear
interpolation, transformers without a mask on the video. Letters: B batch, C channels, T H W frames, height, width;
S tokens of the video, L of the text, N heads, D numbers of a token or a head.
"""
from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HADAMARD_2 = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
HADAMARD_4 = torch.kron(HADAMARD_2, HADAMARD_2) / 2
HADAMARD_8 = torch.kron(HADAMARD_2, torch.kron(HADAMARD_2, HADAMARD_2)) * 0.3536


# ---------------------------------------------------------------- WFVAE

def by_frames(function, x: Tensor) -> Tensor:
    """A function of pictures (B T, C, H, W), on a video (B, C, T, H, W)."""
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
    """Over the channels of a video."""

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
    """Among the positions of each frame, one head."""

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
        q, k, v = (part.permute(0, 2, 3, 4, 1).reshape(b * t, h * w, c) for part in (self.q(y), self.k(y), self.v(y)))
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
    """The first frame stays one."""

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
        self.down1 = nn.Sequential(Conv2d(24, base, 3, padding=1), *(ResnetBlock2D(base) for _ in blocks),
                                   Downsample(base))
        self.down2 = nn.Sequential(Conv2d(base + flow, 2 * base, 3, padding=1),
                                   *(ResnetBlock3D(2 * base, 2 * base) for _ in blocks),
                                   Spatial2xTime2x3DDownsample(2 * base))
        self.mid = nn.Sequential(ResnetBlock3D(2 * base + flow, 4 * base), AttnBlock3DFix(4 * base),
                                 ResnetBlock3D(4 * base, 4 * base))
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
            return nn.Sequential(*(ResnetBlock3D(flow, flow) for _ in range(config["connect_res_layer_num"])),
                                 Conv2d(flow, out_channels, 3, padding=1))

        self.conv_in = CausalConv3d(config["latent_dim"], 4 * base)
        self.mid = nn.Sequential(ResnetBlock3D(4 * base, 4 * base), AttnBlock3DFix(4 * base),
                                 ResnetBlock3D(4 * base, 4 * base + flow))
        self.up2 = nn.Sequential(*(ResnetBlock3D(4 * base, 4 * base) for _ in range(count)),
                                 Spatial2xTime2x3DUpsample(4 * base), ResnetBlock3D(4 * base, 4 * base + flow))
        self.up1 = nn.Sequential(*(ResnetBlock3D((2 if i else 4) * base, 2 * base) for i in range(count)),
                                 Upsample(2 * base), ResnetBlock3D(2 * base, 2 * base))
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
        low = self.wavelet_transform_l2.inverse(self.connect_l2(h[:, -self.flow:]))
        h = self.up2(h[:, :-self.flow])
        l1 = self.connect_l1(h[:, -self.flow:])
        low = self.wavelet_transform_l1.inverse(torch.cat((l1[:, :3] + low, l1[:, 3:]), 1))
        h = self.layer(self.up1(h[:, :-self.flow]))
        h = self.conv_out(F.silu(self.norm_out(h)))
        return self.wavelet_transform_out.inverse(torch.cat((h[:, :3] + low, h[:, 3:]), 1))


class WFVAE(nn.Module):
    """Videos (B, 3, 1 + 4n, H, W) to moments (B, 2 latent_dim, 1 + n, H/8, W/8), and latents to videos."""

    def __init__(self, config: dict):
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)


# ---------------------------------------------------------------- transformer

def rope_tables(frames: int, height: int, width: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin (T H W, 1, head_dim): a third of a head for each axis, its halves alike."""
    dim = head_dim // 3
    frequencies = 10000.0 ** (-torch.arange(0, dim, 2) / dim)
    positions = torch.cartesian_prod(torch.arange(frames), torch.arange(height), torch.arange(width))
    angles = positions[:, :, None] * frequencies  # S 3 dim/2
    angles = torch.cat((angles, angles), 2).flatten(1).unsqueeze(1)
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, S, N, D)."""
    first, second = x.unflatten(-1, (3, 2, -1)).unbind(-2)
    return x * cos + torch.stack((-second, first), -2).flatten(-3) * sin


class Attention(nn.Module):
    """Self- or cross-attention; `groups` above 1 makes it skiparse, `runs` deals runs of tokens instead of single ones."""

    def __init__(self, width: int, heads: int, groups: int = 1, runs: bool = False):
        super().__init__()
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.heads, self.groups = heads, groups
        self.run = groups if runs else 1

    def deal(self, x: Tensor) -> Tensor:
        """(B, S, N, D) -> (B groups, S / groups, N, D)."""
        if self.groups == 1:
            return x
        return x.unflatten(1, (-1, self.groups, self.run)).transpose(1, 2).flatten(2, 3).flatten(0, 1)

    def gather(self, x: Tensor) -> Tensor:
        """The inverse of `deal`, (B groups, S / groups, D) -> (B, S, D)."""
        if self.groups == 1:
            return x
        x = x.unflatten(0, (-1, self.groups)).unflatten(2, (-1, self.run))  # B groups rounds run D
        return x.transpose(1, 2).flatten(1, 3)

    def forward(self, x: Tensor, text: Tensor | None = None, visible: Tensor | None = None, rope=None) -> Tensor:
        source = x if text is None else text
        q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in (self.to_q(x), self.to_k(source), self.to_v(source)))
        if rope is not None:
            q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        q, k, v = (self.deal(y).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, visible)
        return self.to_out[0](self.gather(y.transpose(1, 2).flatten(2)))


class GELU(nn.Module):
    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.proj = nn.Linear(in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.net = nn.Sequential(GELU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int, groups: int, runs: bool):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn1 = Attention(width, heads, groups, runs)
        self.attn2 = Attention(width, heads)
        self.ff = FeedForward(width)
        self.scale_shift_table = nn.Parameter(torch.empty(6, width))

    def forward(self, x: Tensor, modulation: Tensor, rope, text: Tensor, visible: Tensor) -> Tensor:
        shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff = (
            self.scale_shift_table + modulation).chunk(6, 1)
        h = self.norm(x) * (1 + scale_attn) + shift_attn
        x = x + gate_attn * self.attn1(h, rope=rope)
        x = x + self.attn2(x, text, visible)
        h = self.norm(x) * (1 + scale_ff) + shift_ff
        return x + gate_ff * self.ff(h)


class PatchEmbed2D(nn.Module):
    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return by_frames(self.proj, x).flatten(2).transpose(1, 2)


class TwoLinear(nn.Module):
    def __init__(self, in_features: int, width: int, activation):
        super().__init__()
        self.linear_1 = nn.Linear(in_features, width)
        self.linear_2 = nn.Linear(width, width)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.activation(self.linear_1(x)))


class AdaLayerNormSingle(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.emb = nn.ModuleDict({"timestep_embedder": TwoLinear(256, width, F.silu)})
        self.linear = nn.Linear(width, 6 * width)

    def forward(self, timestep: Tensor) -> tuple[Tensor, Tensor]:
        angles = timestep[:, None] * torch.exp(-math.log(10000.0) * torch.arange(128) / 128)
        embedded = self.emb["timestep_embedder"](torch.cat((angles.cos(), angles.sin()), 1))
        return self.linear(F.silu(embedded)).unflatten(1, (6, -1)), embedded


class OpenSoraT2V(nn.Module):
    """(B, C, T, H, W), timesteps (B,), text (B, L, caption_channels) and its mask (B, L), 1 = visible -> (B, C, T, H, W)."""

    def __init__(self, config: dict, channels: int = 8):
        super().__init__()
        heads, self.head_dim = config["num_attention_heads"], config["attention_head_dim"]
        width, groups = heads * self.head_dim, config["sparse_n"]
        self.pos_embed = PatchEmbed2D(channels, width)
        self.caption_projection = TwoLinear(config["caption_channels"], width,
                                            lambda x: F.gelu(x, approximate="tanh"))
        self.adaln_single = AdaLayerNormSingle(width)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(width, heads, groups if i >= 2 else 1, i % 2 == 1) for i in range(config["num_layers"]))
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.empty(2, width))
        self.proj_out = nn.Linear(width, 4 * channels)

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor, text_mask: Tensor) -> Tensor:
        _, c, t, h, w = x.shape
        h, w = h // 2, w // 2
        text = self.caption_projection(text)
        x = self.pos_embed(x)
        modulation, embedded = self.adaln_single(timestep)
        rope = rope_tables(t, h, w, self.head_dim)
        visible = text_mask.bool()[:, None, None]
        for block in self.transformer_blocks:
            x = block(x, modulation, rope, text, visible)
        shift, scale = (self.scale_shift_table + embedded[:, None]).chunk(2, 1)
        x = self.proj_out(self.norm(x) * (1 + scale) + shift)
        return x.unflatten(2, (2, 2, c)).unflatten(1, (t, h, w)).permute(0, 6, 1, 2, 4, 3, 5).reshape(
            -1, c, t, 2 * h, 2 * w)


# ---------------------------------------------------------------- text encoder

class RMSNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-6)


class MT5SelfAttention(nn.Module):
    def __init__(self, config: dict, has_bias: bool):
        super().__init__()
        width, inner = config["d_model"], config["num_heads"] * config["d_kv"]
        self.q = nn.Linear(width, inner, bias=False)
        self.k = nn.Linear(width, inner, bias=False)
        self.v = nn.Linear(width, inner, bias=False)
        self.o = nn.Linear(inner, width, bias=False)
        self.heads = config["num_heads"]
        if has_bias:
            self.relative_attention_bias = nn.Embedding(32, self.heads)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.q(x), self.k(x), self.v(x)))
        return self.o(F.scaled_dot_product_attention(q, k, v, bias, scale=1.0).transpose(1, 2).flatten(2))


class MT5AttentionLayer(nn.Module):
    def __init__(self, config: dict, has_bias: bool):
        super().__init__()
        self.SelfAttention = MT5SelfAttention(config, has_bias)
        self.layer_norm = RMSNorm(config["d_model"])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + self.SelfAttention(self.layer_norm(x), bias)


class DenseReluDense(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.wi_0 = nn.Linear(config["d_model"], config["d_ff"], bias=False)
        self.wi_1 = nn.Linear(config["d_model"], config["d_ff"], bias=False)
        self.wo = nn.Linear(config["d_ff"], config["d_model"], bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


class MT5FeedForwardLayer(nn.Module):
    def __init__(self, config: dict):
        super().__init__()
        self.DenseReluDense = DenseReluDense(config)
        self.layer_norm = RMSNorm(config["d_model"])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))


class MT5Block(nn.Module):
    def __init__(self, config: dict, has_bias: bool):
        super().__init__()
        self.layer = nn.ModuleList([MT5AttentionLayer(config, has_bias), MT5FeedForwardLayer(config)])

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.layer[1](self.layer[0](x, bias))


def distance_buckets(length: int) -> Tensor:
    """(L, L): 16 buckets for keys up to the query, 16 for those after; 8 of each exact, the others to 128 logarithmic."""
    distance = torch.arange(length)[None] - torch.arange(length)[:, None]
    far = 8 + (torch.log(distance.abs().clamp(min=1) / 8) / math.log(16) * 8).long()
    return torch.where(distance.abs() < 8, distance.abs(), far.clamp(max=15)) + 16 * (distance > 0)


class MT5Encoder(nn.Module):
    """Token ids and mask (B, L), 1 = a token -> (B, L, D)."""

    def __init__(self, config: dict):
        super().__init__()
        self.encoder = nn.ModuleDict({
            "embed_tokens": nn.Embedding(config["vocab_size"], config["d_model"]),
            "block": nn.ModuleList(MT5Block(config, i == 0) for i in range(config["num_layers"])),
            "final_layer_norm": RMSNorm(config["d_model"]),
        })

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x, blocks = self.encoder["embed_tokens"](ids), self.encoder["block"]
        by_distance = blocks[0].layer[0].SelfAttention.relative_attention_bias(distance_buckets(ids.shape[1]))
        bias = by_distance.permute(2, 0, 1)[None].masked_fill(~mask.bool()[:, None, None], -1e9)  # B N L L
        for block in blocks:
            x = block(x, bias)
        return self.encoder["final_layer_norm"](x)
