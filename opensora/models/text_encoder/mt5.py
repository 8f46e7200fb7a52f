"""The encoder of mT5 (Xue et al. 2021) and T5 v1.1 (Raffel et al. 2020; Shazeer 2020 for the gated feed-forward)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from opensora.checkpoint.lazy_tensor import LazyTensor
from opensora.models.common.layers import Embedding, Linear, RMSNorm
from opensora.models.pretrained import PretrainedModel
from opensora.models.streaming import BlockStream
from opensora.models.text_encoder.config import MT5Config
from opensora.ops.activations import gated_gelu_tanh
from opensora.ops.attention import mask_to_bias, unscaled_attention

FLOAT16_LIMIT = 64504.0


@lru_cache(maxsize=8)
def _buckets(length: int, count: int, max_distance: int) -> np.ndarray:
    """Bucket of each relative position, (L queries, L keys) int32 (Raffel et al. 2020, arXiv:1910.10683, section 2.1).

    Half of the buckets are for keys after the query, half for keys before it. The first half of each holds one
    distance per bucket; the others grow logarithmically up to `max_distance`.
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
    """`_buckets` as a graph-mode constant."""
    return Tensor(_buckets(length, count, max_distance))


class SelfAttention(nn.Cell):
    """Attention with a relative position bias; T5 does not scale the scores by 1 / sqrt(D)."""

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

    def construct(self, x: Tensor, attn_bias: Tensor) -> Tensor:
        q, k, v = self.to_heads(self.q(x)), self.to_heads(self.k(x)), self.to_heads(self.v(x))
        return self.o(unscaled_attention(q, k, v, attn_bias).reshape(x.shape[0], x.shape[1], -1))


class AttentionLayer(nn.Cell):
    """Pre-norm self-attention with a residual connection."""

    def __init__(self, config: MT5Config, has_relative_attention_bias: bool):
        super().__init__()
        self.SelfAttention = SelfAttention(config, has_relative_attention_bias)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def construct(self, x: Tensor, attn_bias: Tensor) -> Tensor:
        return x + self.SelfAttention(self.layer_norm(x), attn_bias)


class DenseReluDense(nn.Cell):
    """Gated MLP, (GELU(x W0) * (x W1)) W2 (Shazeer 2020, arXiv:2002.05202, eq. 6), under its published name."""

    def __init__(self, config: MT5Config):
        super().__init__()
        self.wi_0 = Linear(config.d_model, config.d_ff, bias=False)
        self.wi_1 = Linear(config.d_model, config.d_ff, bias=False)
        self.wo = Linear(config.d_ff, config.d_model, bias=False)

    def construct(self, x: Tensor) -> Tensor:
        return self.wo(gated_gelu_tanh(self.wi_0(x), self.wi_1(x)))


class FeedForwardLayer(nn.Cell):
    """Pre-norm MLP with a residual connection."""

    def __init__(self, config: MT5Config):
        super().__init__()
        self.DenseReluDense = DenseReluDense(config)
        self.layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)

    def construct(self, x: Tensor) -> Tensor:
        return x + self.DenseReluDense(self.layer_norm(x))


class Block(nn.Cell):
    """Self-attention and MLP, each with a residual connection."""

    def __init__(self, config: MT5Config, has_relative_attention_bias: bool):
        super().__init__()
        self.layer = nn.CellList([AttentionLayer(config, has_relative_attention_bias), FeedForwardLayer(config)])

    def construct(self, x: Tensor, attn_bias: Tensor) -> Tensor:
        x = self.layer[1](self.layer[0](x, attn_bias))
        if x.dtype == ms.float16:  # T5's largest activations exceed float16
            x = ops.clamp(x, -FLOAT16_LIMIT, FLOAT16_LIMIT)
        return x


class Stack(nn.Cell):
    """Embedding, blocks and the final norm; the first block's relative position bias serves all blocks."""

    def __init__(self, config: MT5Config):
        super().__init__()
        self.embed_tokens = Embedding(config.vocab_size, config.d_model)
        self.block = nn.CellList([Block(config, i == 0) for i in range(config.num_layers)])
        self.final_layer_norm = RMSNorm(config.d_model, config.layer_norm_epsilon)
        self.blocks_to_run: Iterable = tuple(self.block)
        self.bucket_count = config.relative_attention_num_buckets
        self.max_distance = config.relative_attention_max_distance

    def construct(self, input_ids: Tensor, attention_mask: Optional[Tensor]) -> Tensor:
        x, attn_bias = self.embed_tokens(input_ids), self.position_bias(input_ids.shape[1])
        if attention_mask is not None:
            attn_bias = attn_bias + mask_to_bias(attention_mask)
        for block in self.blocks_to_run:
            x = block(x, attn_bias)
        return self.final_layer_norm(x)

    def position_bias(self, length: int) -> Tensor:
        """The relative position bias, (1, N, L, L) float32."""
        buckets = position_buckets(length, self.bucket_count, self.max_distance)
        position_bias = self.block[0].layer[0].SelfAttention.relative_attention_bias(buckets)  # L L N
        return position_bias.transpose(2, 0, 1).expand_dims(0).astype(ms.float32)


class MT5EncoderModel(PretrainedModel):
    """Token ids (B, L) and a mask (B, L), 1 = token, 0 = padding -> states (B, L, d_model).

    Loads the encoder of a full mT5 or T5 v1.1 checkpoint; the decoder's weights are not read.
    """

    config_class = MT5Config
    config: MT5Config
    published_as = ("mt5", "t5", "MT5ForConditionalGeneration", "T5ForConditionalGeneration", "T5EncoderModel")
    aliases = {"shared.weight": "encoder.embed_tokens.weight"}
    ignored_prefixes = ("decoder.", "lm_head.")
    block_list = "encoder.block"
    tables = ("encoder.embed_tokens.weight",)
    resident = ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",)  # serves all blocks

    def __init__(self, **values):
        super().__init__()
        self.config = MT5Config.from_dict(values)
        self.encoder = Stack(self.config)

    def construct(self, input_ids: Tensor, attention_mask: Optional[Tensor] = None) -> Tensor:
        return self.encoder(input_ids, attention_mask)

    def encode(self, batches: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """The states of several batches of ids and masks.

        A streamed encoder reads each block once for all of them.
        """
        stack = self.encoder
        if not isinstance(stack.blocks_to_run, BlockStream):
            return [self(ids, mask) for ids, mask in batches]
        states = [stack.embed_tokens(ids) for ids, _ in batches]
        bias_of = {length: stack.position_bias(length) for length in {ids.shape[1] for ids, _ in batches}}
        for block in stack.blocks_to_run:
            for i, (ids, mask) in enumerate(batches):
                states[i] = block(states[i], bias_of[ids.shape[1]] + mask_to_bias(mask))
        return [stack.final_layer_norm(x) for x in states]

    def replace_blocks(self, blocks: Iterable) -> None:
        self.encoder.blocks_to_run = blocks

    def _open_tables(self, tables: Mapping[str, LazyTensor]) -> None:
        for name in self.tables:
            self.encoder.embed_tokens.file_table, self.encoder.embed_tokens.dtype = tables[name], self.dtype


T5EncoderModel = MT5EncoderModel  # T5 v1.1 differs in its vocabulary alone
