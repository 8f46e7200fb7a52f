"""The blocks of LatteT2V: self-attention within each frame, or along time at each position."""

from __future__ import annotations

from typing import Optional, Union

from mindspore import Tensor

from opensora.models.common.layers import scale_shift_table, stacked
from opensora.models.dit.blocks import CrossAttention, FeedForward, ModulatedBlock, Projections
from opensora.models.latte.config import LatteConfig
from opensora.ops.attention import self_attention
from opensora.ops.layout import permute
from opensora.parallel.sequence import NoSequenceParallel


class AxialAttention(Projections):
    """Self-attention within each frame of T x S tokens, or `along_time` within each of the S positions.

    With sequence parallelism, x holds a shard of the tokens, and attention runs on all tokens of a shard of the heads.
    """

    def __init__(self, config: LatteConfig, along_time: bool):
        super().__init__(config, config.hidden_size)
        self.along_time = along_time
        self.sequence = NoSequenceParallel()

    def construct(self, x: Tensor, frames: int, positions: int, attn_mask: Optional[Tensor] = None) -> Tensor:
        """x (B, s, D), attn_mask of `prepare_attention_mask` for B T frames -> (B, s, D)."""
        b, s, _ = x.shape
        qkv = self.heads(stacked(x, self.to_q, self.to_k, self.to_v))  # 3 B s N D: queries, then keys, then values
        qkv = self.sequence.all_to_all_heads(qkv, frames * positions)
        heads = qkv.shape[2]
        if self.along_time:
            qkv = permute(qkv.reshape(3 * b, frames, positions, -1), (0, 2, 1, 3))
        length = frames if self.along_time else positions
        y = self_attention(qkv.reshape(-1, length, heads, self.head_dim), attn_mask)
        if self.along_time:
            y = permute(y.reshape(b, positions, frames, -1), (0, 2, 1, 3))
        y = self.sequence.all_to_all_tokens(y.reshape(b, frames * positions, heads, self.head_dim))
        return self.to_out[0](y.reshape(b, s, -1))


class SpatialBlock(ModulatedBlock):
    """Self-attention within each frame, cross-attention to the text, MLP.

    x (B, S, D) and modulation (B, 6, D), float32, text (R, L, D) or the pair of its keys and values -> (R, S, D)
    float32. R is a multiple of B: what precedes the cross-attention is computed once for all texts of a video.
    """

    differentiable = (0, 1, 5)  # the inputs that receive gradients: x, modulation, text

    def __init__(self, config: LatteConfig):
        super().__init__()
        self.attn1 = AxialAttention(config, along_time=False)
        self.attn2 = CrossAttention(config)
        self.ff = FeedForward(config.hidden_size)
        self.scale_shift_table = scale_shift_table(6, config.hidden_size)
        self.eps = config.norm_eps

    def construct(
        self,
        x: Tensor,
        modulation: Tensor,
        frames: int,
        positions: int,
        attn_mask: Optional[Tensor],
        text: Union[Tensor, tuple],
        text_mask: Optional[Tensor],
    ) -> Tensor:
        modulation = self.scale_shift_table + modulation
        x = self.self_attend(x, modulation, frames, positions, attn_mask)
        x = self.cross_attend(x, text, text_mask)
        return self.feed_forward(x, modulation)


class TemporalBlock(ModulatedBlock):
    """Self-attention along time at each position, MLP: x (B, S, D), modulation (B, 6, D) -> (B, S, D), float32."""

    differentiable = (0, 1)

    def __init__(self, config: LatteConfig):
        super().__init__()
        self.attn1 = AxialAttention(config, along_time=True)
        self.ff = FeedForward(config.hidden_size)
        self.scale_shift_table = scale_shift_table(6, config.hidden_size)
        self.eps = config.norm_eps

    def construct(self, x: Tensor, modulation: Tensor, frames: int, positions: int) -> Tensor:
        modulation = self.scale_shift_table + modulation
        return self.feed_forward(self.self_attend(x, modulation, frames, positions), modulation)
