"""The diffusion transformer, without a mask on the video.

Letters: B batch, C channels, T H W frames, height, width; S tokens of the video, L of the text, N heads, D width of a
token or of a head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def rope_tables(frames: int, height: int, width: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """cos and sin (T H W, 1, head_dim): one third of a head per axis, with equal halves."""
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
    """Self- or cross-attention; `groups` > 1: skiparse, single skip, or group skip if `group_skip`."""

    def __init__(self, width: int, heads: int, groups: int = 1, group_skip: bool = False):
        super().__init__()
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.heads, self.groups = heads, groups
        self.run = groups if group_skip else 1

    def split(self, x: Tensor) -> Tensor:
        """(B, S, N, D) -> (B groups, S / groups, N, D)."""
        if self.groups == 1:
            return x
        return x.unflatten(1, (-1, self.groups, self.run)).transpose(1, 2).flatten(2, 3).flatten(0, 1)

    def merge(self, x: Tensor) -> Tensor:
        """The inverse of `split`, (B groups, S / groups, D) -> (B, S, D)."""
        if self.groups == 1:
            return x
        x = x.unflatten(0, (-1, self.groups)).unflatten(2, (-1, self.run))  # B groups rounds run D
        return x.transpose(1, 2).flatten(1, 3)

    def forward(self, x: Tensor, text: Tensor | None = None, mask: Tensor | None = None, rope=None) -> Tensor:
        source = x if text is None else text
        q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in (self.to_q(x), self.to_k(source), self.to_v(source)))
        if rope is not None:
            q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        q, k, v = (self.split(y).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, mask)
        return self.to_out[0](self.merge(y.transpose(1, 2).flatten(2)))


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
    def __init__(self, width: int, heads: int, groups: int, group_skip: bool):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn1 = Attention(width, heads, groups, group_skip)
        self.attn2 = Attention(width, heads)
        self.ff = FeedForward(width)
        self.scale_shift_table = nn.Parameter(torch.empty(6, width))

    def forward(self, x: Tensor, modulation: Tensor, rope, text: Tensor, mask: Tensor) -> Tensor:
        shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff = (self.scale_shift_table + modulation).chunk(
            6, 1
        )
        h = self.norm(x) * (1 + scale_attn) + shift_attn
        x = x + gate_attn * self.attn1(h, rope=rope)
        x = x + self.attn2(x, text, mask)
        h = self.norm(x) * (1 + scale_ff) + shift_ff
        return x + gate_ff * self.ff(h)


class PatchEmbed2D(nn.Module):
    def __init__(self, in_channels: int, width: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        x = self.proj(x.transpose(1, 2).flatten(0, 1))  # (B T) D H/2 W/2
        return x.flatten(2).transpose(1, 2).reshape(b, -1, x.shape[1])


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
    """Latents (B, C, T, H, W), timesteps (B,), text (B, L, caption_channels), its mask (B, L), 1 = token -> latents."""

    def __init__(self, config: dict, channels: int = 8):
        super().__init__()
        heads, self.head_dim = config["num_attention_heads"], config["attention_head_dim"]
        width, groups = heads * self.head_dim, config["sparse_n"]
        self.pos_embed = PatchEmbed2D(channels, width)
        self.caption_projection = TwoLinear(config["caption_channels"], width, lambda x: F.gelu(x, approximate="tanh"))
        self.adaln_single = AdaLayerNormSingle(width)
        self.transformer_blocks = nn.ModuleList(
            TransformerBlock(width, heads, groups if i >= 2 else 1, i % 2 == 1) for i in range(config["num_layers"])
        )
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
        mask = text_mask.bool()[:, None, None]
        for block in self.transformer_blocks:
            x = block(x, modulation, rope, text, mask)
        shift, scale = (self.scale_shift_table + embedded[:, None]).chunk(2, 1)
        x = self.proj_out(self.norm(x) * (1 + scale) + shift)
        return (
            x.unflatten(2, (2, 2, c))
            .unflatten(1, (t, h, w))
            .permute(0, 6, 1, 2, 4, 3, 5)
            .reshape(-1, c, t, 2 * h, 2 * w)
        )
