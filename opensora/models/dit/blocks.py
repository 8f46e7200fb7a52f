"""The transformer block: self-attention, cross-attention to the text, feed-forward."""
from __future__ import annotations

import math
from typing import Optional

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from opensora.models.dit.config import OpenSoraConfig
from opensora.models.dit.skiparse import Skiparse
from opensora.models.layers import Linear
from opensora.ops.activations import gelu_tanh
from opensora.ops.attention import attention
from opensora.ops.norms import modulated_layer_norm
from opensora.ops.rope import apply_rope


def scale_shift_table(rows: int, hidden_size: int) -> Parameter:
    return Parameter(initializer(Normal(1 / math.sqrt(hidden_size)), (rows, hidden_size), ms.float32))


class Projections(nn.Cell):
    """The linear maps of an attention: queries from (B, S, D), keys and values from (B, L, key_dim), the output."""

    def __init__(self, config: OpenSoraConfig, key_dim: int):
        super().__init__()
        width, bias = config.hidden_size, config.attention_bias
        self.to_q = Linear(width, width, bias)
        self.to_k = Linear(key_dim, width, bias)
        self.to_v = Linear(key_dim, width, bias)
        self.to_out = nn.CellList([Linear(width, width)])
        self.heads = config.num_attention_heads

    def to_heads(self, x: Tensor) -> Tensor:
        b, s, _ = x.shape
        return x.reshape(b, s, self.heads, -1).swapaxes(1, 2)  # B S (N D) -> B N S D

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor]) -> Tensor:
        """Heads (B, N, S, D) -> (B, S, N D), before the output's map."""
        b, n, s, d = q.shape
        return attention(q, k, v, bias).swapaxes(1, 2).reshape(b, s, n * d)


class SelfAttention(Projections):
    """Attention among the tokens of the video, dense or skiparse, with rope."""

    def __init__(self, config: OpenSoraConfig, block: int):
        super().__init__(config, config.hidden_size)
        self.skiparse = Skiparse(config.sparse_n, block % 2 == 1) if config.is_sparse(block) else None

    def construct(self, x: Tensor, bias: Optional[Tensor], cos: Tensor, sin: Tensor) -> Tensor:
        b, s, width = x.shape
        q = apply_rope(self.to_q(x).reshape(b, s, self.heads, -1), cos, sin).reshape(b, s, width)
        k = apply_rope(self.to_k(x).reshape(b, s, self.heads, -1), cos, sin).reshape(b, s, width)
        v = self.to_v(x)
        if self.skiparse is not None:
            q, k, v = self.skiparse.split(q), self.skiparse.split(k), self.skiparse.split(v)
        y = self.attend(self.to_heads(q), self.to_heads(k), self.to_heads(v), bias)
        if self.skiparse is not None:
            y = self.skiparse.merge(y, s)
        return self.to_out[0](y)


class CrossAttention(Projections):
    """Attention of the video's tokens to the text.

    A query's result does not depend on the other queries, so skiparse blocks need no rearranging here.
    """

    def __init__(self, config: OpenSoraConfig):
        super().__init__(config, config.cross_attention_dim)

    def keys_values(self, text: Tensor):
        """(B, L, D) -> keys and values (B, N, L, D / N); they stay the same through all steps of a prompt."""
        return self.to_heads(self.to_k(text)), self.to_heads(self.to_v(text))

    def construct(self, x: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor]) -> Tensor:
        return self.to_out[0](self.attend(self.to_heads(self.to_q(x)), k, v, bias))


class GELU(nn.Cell):
    """Linear map, then GELU."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.proj = Linear(in_features, out_features)

    def construct(self, x: Tensor) -> Tensor:
        return gelu_tanh(self.proj(x))


class FeedForward(nn.Cell):
    """Four times the width and back; the published names count dropout as layer 1."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.CellList([GELU(width, 4 * width), nn.Identity(), Linear(4 * width, width)])

    def construct(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class TransformerBlock(nn.Cell):
    """x (B, S, D), modulation (B, 6, D), text keys and values (B, N, L, D / N) -> (B, S, D)."""

    def __init__(self, config: OpenSoraConfig, block: int):
        super().__init__()
        self.attn1 = SelfAttention(config, block)
        self.attn2 = CrossAttention(config)
        self.ff = FeedForward(config.hidden_size)
        self.scale_shift_table = scale_shift_table(6, config.hidden_size)
        self.eps = config.norm_eps

    def construct(self, x: Tensor, modulation: Tensor, bias: Optional[Tensor], cos: Tensor, sin: Tensor,
                  text_k: Tensor, text_v: Tensor, text_bias: Optional[Tensor]) -> Tensor:
        shift_attn, scale_attn, gate_attn, shift_ff, scale_ff, gate_ff = ops.split(
            self.scale_shift_table + modulation, 1, 1)
        h = modulated_layer_norm(x, shift_attn, scale_attn, self.eps)
        x = x + gate_attn * self.attn1(h, bias, cos, sin)
        x = x + self.attn2(x, text_k, text_v, text_bias)
        h = modulated_layer_norm(x, shift_ff, scale_ff, self.eps)
        return x + gate_ff * self.ff(h)
