"""The transformer block: self-attention, cross-attention to the text, MLP."""

from __future__ import annotations

from typing import Optional, Union

from mindspore import Tensor, nn

from opensora.models.common.layers import Linear, LinearGELU, scale_shift_table, stacked
from opensora.models.common.rows import repeat_rows, text_rows
from opensora.models.dit.config import TransformerConfig
from opensora.models.dit.skiparse import Skiparse
from opensora.ops.attention import attention, self_attention
from opensora.ops.norms import gated_residual, modulated_layer_norm
from opensora.ops.precision import cast
from opensora.ops.rope import apply_rope
from opensora.parallel.sequence import NoSequenceParallel

# The vectors of the modulation: shift, scale and gate of self-attention, then of the MLP.
SHIFT_ATTN, GATE_ATTN, SHIFT_FF, GATE_FF = 0, 2, 3, 5


class Projections(nn.Cell):
    """An attention layer's projections: queries from (B, S, D), keys and values from (B, L, key_dim), output."""

    def __init__(self, config: TransformerConfig, key_dim: int):
        super().__init__()
        width, bias = config.hidden_size, config.attention_bias
        self.to_q = Linear(width, width, bias)
        self.to_k = Linear(key_dim, width, bias)
        self.to_v = Linear(key_dim, width, bias)
        self.to_out = nn.CellList([Linear(width, width)])
        self.head_dim = config.attention_head_dim

    def heads(self, x: Tensor) -> Tensor:
        """(B, S, N D) -> (B, S, N, D)."""
        return x.reshape(x.shape[0], x.shape[1], -1, self.head_dim)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Optional[Tensor]) -> Tensor:
        """q (B, S, N D), k and v (B, L, N D), attn_mask of `prepare_attention_mask` -> (B, S, N D)."""
        return attention(self.heads(q), self.heads(k), self.heads(v), attn_mask).reshape(q.shape)


class SelfAttention(Projections):
    """Self-attention over the tokens of the video, dense or skiparse, with RoPE.

    With sequence parallelism, x holds a shard of the tokens, and attention runs on all tokens of a shard of the heads.
    """

    def __init__(self, config: TransformerConfig, block: int):
        super().__init__(config, config.hidden_size)
        groups = config.attention_groups(block)
        self.skiparse = Skiparse(groups, block % 2 == 1) if groups > 1 else None
        self.sequence = NoSequenceParallel()

    def construct(self, x: Tensor, attn_mask: Optional[Tensor], cos: Tensor, sin: Tensor) -> Tensor:
        b, s, _ = x.shape
        length = cos.shape[0]
        qkv = self.heads(stacked(x, self.to_q, self.to_k, self.to_v))  # 3 B s N D: queries, then keys, then values
        qkv = self.sequence.all_to_all_heads(qkv, length)
        qkv = apply_rope(qkv, cos, sin, 2 * b)
        if self.skiparse is not None:
            qkv = self.skiparse.split(qkv)
        y = self_attention(qkv, attn_mask)
        if self.skiparse is not None:
            y = self.skiparse.merge(y, length)
        return self.to_out[0](self.sequence.all_to_all_tokens(y).reshape(b, s, -1))


class CrossAttention(Projections):
    """Cross-attention from the tokens of the video to the text.

    Queries are independent of each other, so skiparse blocks need no rearrangement here.
    """

    def __init__(self, config: TransformerConfig):
        super().__init__(config, config.cross_attention_dim)

    def keys_values(self, text: Tensor):
        """(B, L, D) -> keys and values (B, L, N D), which are the same for all sampling steps of a prompt."""
        return self.to_k(text), self.to_v(text)

    def construct(self, x: Tensor, text: Union[Tensor, tuple], attn_mask: Optional[Tensor]) -> Tensor:
        k, v = text if isinstance(text, tuple) else self.keys_values(text)
        return self.to_out[0](self.attend(self.to_q(x), k, v, attn_mask))


class GELU(nn.Cell):
    """A linear layer and GELU; the inner cell gives the parameters their published names."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.proj = LinearGELU(in_features, out_features)

    def construct(self, x: Tensor) -> Tensor:
        return self.proj(x)


class FeedForward(nn.Cell):
    """MLP with four times the width; the published names count dropout as layer 1."""

    def __init__(self, width: int):
        super().__init__()
        self.net = nn.CellList([GELU(width, 4 * width), nn.Identity(), Linear(4 * width, width)])

    def construct(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[0](x))


class ModulatedBlock(nn.Cell):
    """The parts of a block: self-attention, cross-attention and MLP, which AdaLN modulates except cross-attention.

    x (B, S, D) and modulation (B, 6, D) are float32.
    """

    keep_float32 = ("scale_shift_table",)
    attn1: nn.Cell
    attn2: CrossAttention
    ff: FeedForward
    eps: float

    def self_attend(self, x: Tensor, modulation: Tensor, *inputs) -> Tensor:
        """x plus self-attention; `inputs` are those of `attn1` after the tokens."""
        h = modulated_layer_norm(x, modulation, SHIFT_ATTN, self.eps)
        h = cast(h, self.attn1.to_q.dtype())  # once for q, k and v
        return gated_residual(x, modulation, GATE_ATTN, self.attn1(h, *inputs))

    def cross_attend(self, x: Tensor, text: Union[Tensor, tuple], text_mask: Optional[Tensor]) -> Tensor:
        """x plus cross-attention, with a row for each text: (B, S, D) -> (R, S, D)."""
        x = repeat_rows(x, text_rows(text))
        return x + cast(self.attn2(x, text, text_mask), x.dtype)

    def feed_forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """x plus the MLP; x may have more rows than `modulation`, see `repeat_rows`."""
        modulation = repeat_rows(modulation, x.shape[0])
        h = modulated_layer_norm(x, modulation, SHIFT_FF, self.eps)
        return gated_residual(x, modulation, GATE_FF, self.ff(h))


class TransformerBlock(ModulatedBlock):
    """Self-attention, cross-attention and MLP with AdaLN modulation.

    x (B, S, D) and modulation (B, 6, D), float32, text (R, L, D) or the pair of its keys and values -> (R, S, D)
    float32. R is a multiple of B: what precedes the cross-attention is computed once for all texts of a video.
    """

    differentiable = (0, 1, 5)  # the inputs that receive gradients: x, modulation, text

    def __init__(self, config: TransformerConfig, block: int):
        super().__init__()
        self.attn1 = SelfAttention(config, block)
        self.attn2 = CrossAttention(config)
        self.ff = FeedForward(config.hidden_size)
        self.scale_shift_table = scale_shift_table(6, config.hidden_size)
        self.eps = config.norm_eps

    def construct(
        self,
        x: Tensor,
        modulation: Tensor,
        attn_mask: Optional[Tensor],
        cos: Tensor,
        sin: Tensor,
        text: Union[Tensor, tuple],
        text_mask: Optional[Tensor],
    ) -> Tensor:
        modulation = self.scale_shift_table + modulation
        x = self.self_attend(x, modulation, attn_mask, cos, sin)
        x = self.cross_attend(x, text, text_mask)
        return self.feed_forward(x, modulation)
