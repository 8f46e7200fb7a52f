"""The encoder of mT5. Letters: B batch, L tokens, N heads, D width."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
    """(L, L): 16 buckets for keys up to the query, 16 for keys after it; 8 of each exact, 8 logarithmic to 128."""
    distance = torch.arange(length)[None] - torch.arange(length)[:, None]
    far = 8 + (torch.log(distance.abs().clamp(min=1) / 8) / math.log(16) * 8).long()
    return torch.where(distance.abs() < 8, distance.abs(), far.clamp(max=15)) + 16 * (distance > 0)


class MT5Encoder(nn.Module):
    """Token ids and mask (B, L), 1 = token -> (B, L, D)."""

    def __init__(self, config: dict):
        super().__init__()
        self.encoder = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(config["vocab_size"], config["d_model"]),
                "block": nn.ModuleList(MT5Block(config, i == 0) for i in range(config["num_layers"])),
                "final_layer_norm": RMSNorm(config["d_model"]),
            }
        )

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x, blocks = self.encoder["embed_tokens"](ids), self.encoder["block"]
        by_distance = blocks[0].layer[0].SelfAttention.relative_attention_bias(distance_buckets(ids.shape[1]))
        bias = by_distance.permute(2, 0, 1)[None].masked_fill(~mask.bool()[:, None, None], -1e9)  # B N L L
        for block in blocks:
            x = block(x, bias)
        return self.encoder["final_layer_norm"](x)
