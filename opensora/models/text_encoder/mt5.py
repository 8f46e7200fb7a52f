"""The encoder of mT5 (Xue et al. 2021) and T5 v1.1 (Raffel et al. 2020; Shazeer 2020 for the gated feed-forward)."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from opensora.models.common.layers import Linear
from opensora.models.pretrained import PretrainedModel
from opensora.models.text_encoder.config import MT5Config
from opensora.ops.activations import gelu_tanh
from opensora.ops.attention import unscaled_attention
from opensora.ops.norms import rms_norm

HIDDEN = -1e9
FLOAT16_LIMIT = 64504.0


@lru_cache(maxsize=8)
def _buckets(length: int, count: int, max_distance: int) -> np.ndarray:
    """Bucket of each (query, key) distance, (L, L) (Raffel et al. 2020, section 2.1).

    Half of the buckets for keys after the query, half for those before; of each half the first are for one distance
    each, the others grow logarithmically up to `max_distance`.
    """
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = count // 2
    exact = half // 2
    far = np.abs(distance).clip(min=1).astype(np.float32) / exact
    logarithmic = exact + (np.log(far) / math.log(max_distance / exact) * (half - exact)).astype(np.int64)
    bucket = np.where(np.abs(distance) < exact, np.abs(distance), logarithmic.clip(max=half - 1))
    return (bucket + (distance > 0) * half).astype(np.int32)


@ops.constexpr
def position_buckets(length: int, count: int, max_distance: int) -> Tensor:
    """`_buckets` as a constant of graph mode."""
    return Tensor(_buckets(length, count, max_distance))


class Embedding(nn.Cell):
    """Rows of `weight` (rows, width) by index."""

    def __init__(self, rows: int, width: int):
        super().__init__()
        self.weight = Parameter(initializer(Normal(1.0), (rows, width), ms.float32))

    def construct(self, indices: Tensor) -> Tensor:
        return ops.gather(self.weight, indices, 0)


class RMSNorm(nn.Cell):
    """x / rms(x) * weight over the last axis (Zhang & Sennrich 2019, eq. 4)."""

    keep_float32 = True

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = Parameter(initializer("ones", (width,), ms.float32))
        self.eps = eps

    def construct(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class SelfAttention(nn.Cell):
    """Attention with a bias by distance and, unlike most, without scaling of the scores."""

    def __init__(self, config: MT5Config, has_relative_attention_bias: bool):
        super().__init__()
        inner = config.num_heads * config.d_kv
        self.q = Linear(config.d_model, inner, bias=False)
        self.k = Linear(config.d_model, inner, bias=False)
        self.v = Linear(config.d_model, inner, bias=False)
        self.o = Linear(inner, config.d_model, bias=False)
        if has_relative_attention_bias:
            self.relative_attention_bias = Embedding(config.relative_attention_num_buckets, config.num_heads)
        self.heads = config.num_heads

    def to_heads(self, x: Tensor) -> Tensor:
        """(B, L, N D) -> (B, L, N, D)."""
        return x.reshape(x.shape[0], x.shape[1], self.heads, -1)

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = self.to_heads(self.q(x)), self.to_heads(self.k(x)), self.to_heads(self.v(x))
        return self.o(unscaled_attention(q, k, v, bias).reshape(x.shape[0], x.shape[1], -1))


class AttentionLayer(nn.Cell):
    """Normalised self-attention around a shortcut."""

    def __init__(self, config: MT5Config, has_relative_attention_bias: bool):
        super().__init__()
        self.SelfAttention = SelfAttention(config, has_relative_attention_bias)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        return x + self.SelfAttention(self.layer_norm(x), bias)


class DenseReluDense(nn.Cell):
    """GELU(x W0) * (x W1), then back (Shazeer 2020, eq. 6); the published name is older than the gate."""

    def __init__(self, config: MT5Config):
        super().__init__()
        self.wi_0 = Linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = Linear(config.d_model, config.d_ff, bias=False)
        self.wo = Linear(config.d_ff, config.d_model, bias=False)

    def construct(self, x: Tensor) -> Tensor:
        return self.wo(gelu_tanh(self.wi_0(x)) * self.wi_1(x))


class FeedForwardLayer(nn.Cell):
    """Normalised feed-forward around a shortcut."""

    def __init__(self, config: MT5Config):
        super().__init__()
        self.DenseReluDense = DenseReluDense(config)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def construct(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))


class Block(nn.Cell):
    """Self-attention and feed-forward, each around a shortcut."""

    def __init__(self, config: MT5Config, has_relative_attention_bias: bool):
        super().__init__()
        self.layer = nn.CellList([AttentionLayer(config, has_relative_attention_bias), FeedForwardLayer(config)])

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.layer[1](self.layer[0](x, bias))
        if x.dtype == ms.float16:  # T5's largest activations exceed float16
            x = ops.clamp(x, -FLOAT16_LIMIT, FLOAT16_LIMIT)
        return x


class Stack(nn.Cell):
    """Embedding, blocks and the last norm."""

    def __init__(self, config: MT5Config):
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.d_model)
        self.block = nn.CellList([Block(config, i == 0) for i in range(config.num_layers)])
        self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.bucket_count = config.relative_attention_num_buckets
        self.max_distance = config.relative_attention_max_distance

    def construct(self, input_ids: Tensor, attention_mask: Optional[Tensor]) -> Tensor:
        x = self.embed_tokens(input_ids)
        buckets = position_buckets(input_ids.shape[1], self.bucket_count, self.max_distance)
        by_distance = self.block[0].layer[0].SelfAttention.relative_attention_bias(buckets)  # L L N
        bias = by_distance.transpose(2, 0, 1).expand_dims(0).astype(ms.float32)
        if attention_mask is not None:
            hidden = 1 - attention_mask.astype(ms.float32)
            bias = bias + (hidden * HIDDEN).expand_dims(1).expand_dims(1)
        for block in self.block:
            x = block(x, bias)
        return self.final_layer_norm(x)


class MT5EncoderModel(PretrainedModel):
    """Token ids (B, L) and a mask (B, L), 1 = a token, 0 = padding -> states (B, L, d_model).

    Loads the encoder's half of a full mT5 or T5 v1.1 checkpoint; the decoder's half is not read.
    """

    config_class = MT5Config
    published_as = ("mt5", "t5", "MT5ForConditionalGeneration", "T5ForConditionalGeneration", "T5EncoderModel")
    aliases = {"shared.weight": "encoder.embed_tokens.weight"}
    ignored_prefixes = ("decoder.", "lm_head.")

    def __init__(self, **config):
        super().__init__()
        self.config = MT5Config.from_dict(config)
        self.encoder = Stack(self.config)

    def construct(self, input_ids: Tensor, attention_mask: Optional[Tensor] = None) -> Tensor:
        return self.encoder(input_ids, attention_mask)
