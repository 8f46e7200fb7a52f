"""The transformer blocks of PixArt (self-attention, cross-attention, MLP) and STDiT2 (also attention along time).

Letters: B batch, T frames, S tokens of a frame, L tokens of the text, C width, N heads, D width of a head; F is T if
the timestep differs between frames (conditioning frames have 0), else 1.
"""

from __future__ import annotations

from typing import Optional, Union

from mindspore import Tensor, nn

from opensora.models.common.layers import RMSNorm, scale_shift_table
from opensora.models.common.rows import repeat_rows, text_rows
from opensora.models.stdit.config import CaptionedConfig, STDiT2Config
from opensora.models.stdit.embeddings import Mlp, make_linear
from opensora.ops.attention import attention
from opensora.ops.layout import permute, select, unstack
from opensora.ops.norms import gated_residual, modulated_layer_norm
from opensora.ops.rope import apply_interleaved_rope

EPS = 1e-6
# The vectors of the modulations: shift, scale and gate of spatial attention, then of the MLP; of temporal attention.
SHIFT_SPACE, GATE_SPACE, SHIFT_MLP, GATE_MLP = 0, 2, 3, 5
SHIFT_TIME, GATE_TIME = 0, 2


class SelfAttention(nn.Cell):
    """Attention within each frame, or `along_time` within each spatial position. (B, T, S, C) -> (B, T, S, C).

    RoPE, if its cosines and sines are given, comes before the query and key norms; the published weights were trained
    in that order.
    """

    def __init__(self, width: int, heads: int, along_time: bool, proj: str = "xavier_uniform", qk_norm: bool = False):
        super().__init__()
        self.heads = heads
        self.along_time = along_time
        self.qkv = make_linear(width, 3 * width)
        self.proj = make_linear(width, width, proj)
        self.qk_norm = qk_norm
        if qk_norm:
            self.q_norm = RMSNorm(width // heads)
            self.k_norm = RMSNorm(width // heads)

    def construct(self, x: Tensor, cos: Optional[Tensor] = None, sin: Optional[Tensor] = None) -> Tensor:
        b, t, s, c = x.shape
        qkv = self.qkv(x).reshape(b, t, s, 3, self.heads, -1)
        qkv = permute(qkv, (3, 0, 2, 1, 4, 5) if self.along_time else (3, 0, 1, 2, 4, 5))  # 3, B S T N D or B T S N D
        q, k, v = unstack(qkv.reshape(3, -1, *qkv.shape[3:]))
        if cos is not None:
            q, k = apply_interleaved_rope(q, cos, sin), apply_interleaved_rope(k, cos, sin)
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        y = attention(q, k, v)
        y = permute(y.reshape(b, s, t, c), (0, 2, 1, 3)) if self.along_time else y
        return self.proj(y.reshape(b, t, s, c))


class CrossAttention(nn.Cell):
    """Cross-attention from the video (B, T, S, C) to the text (B, L, C) or its keys and values.

    attn_mask is of `prepare_attention_mask`.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_linear = make_linear(width, width)
        self.kv_linear = make_linear(width, 2 * width)
        self.proj = make_linear(width, width, "zeros")

    def keys_values(self, text: Tensor) -> tuple:
        """(B, L, C) -> keys and values (B, L, N, D), which are the same for all sampling steps of a text."""
        b, length, _ = text.shape
        return unstack(permute(self.kv_linear(text).reshape(b, length, 2, self.heads, -1), (2, 0, 1, 3, 4)))

    def construct(self, x: Tensor, text: Union[Tensor, tuple], attn_mask: Optional[Tensor]) -> Tensor:
        b, t, s, c = x.shape
        q = self.q_linear(x).reshape(b, t * s, self.heads, -1)  # B TS N D
        k, v = text if isinstance(text, tuple) else self.keys_values(text)
        return self.proj(attention(q, k, v, attn_mask).reshape(b, t, s, c))


class ModulatedBlock(nn.Cell):
    """The parts of a PixArt block (Chen et al. 2023, arXiv:2310.00426, section 2.3), for subclasses that have them.

    x is (B, T, S, C), the modulation (B, F, 6, C), both float32.
    """

    keep_float32: tuple[str, ...] = ("scale_shift_table",)

    def modulated(self, modulation: Tensor) -> Tensor:
        """(B, F, 1, 6 C) -> (B, F, 6, C), with the offsets of this block."""
        return self.scale_shift_table + modulation.reshape(*modulation.shape[:2], 6, -1)

    def self_attend(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Adds self-attention within each frame."""
        h = modulated_layer_norm(x, modulation, SHIFT_SPACE, EPS)
        return gated_residual(x, modulation, GATE_SPACE, self.attn(h))

    def cross_attend(self, x: Tensor, text: Union[Tensor, tuple], text_mask: Optional[Tensor]) -> Tensor:
        """Adds cross-attention to the text; what precedes it is computed once for all R texts of a video."""
        x = repeat_rows(x, text_rows(text))
        return x + self.cross_attn(x, text, text_mask).astype(x.dtype)

    def feed_forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """Adds the MLP."""
        modulation = repeat_rows(modulation, x.shape[0])
        h = modulated_layer_norm(x, modulation, SHIFT_MLP, EPS)
        return gated_residual(x, modulation, GATE_MLP, self.mlp(h))


class CaptionedBlock(ModulatedBlock):
    """Has the parts of a PixArt block; subclasses compute with them."""

    def __init__(self, config: CaptionedConfig):
        super().__init__()
        width, heads = config.hidden_size, config.num_heads
        self.scale_shift_table = scale_shift_table(6, width)
        self.attn = SelfAttention(width, heads, along_time=False)
        self.cross_attn = CrossAttention(width, heads)
        self.mlp = Mlp(width, int(width * config.mlp_ratio), width)


class PixArtBlock(CaptionedBlock):
    """Self-attention within each frame, cross-attention to the text, MLP.

    x (B, T, S, C) and modulation (B, 1, 1, 6 C), both float32, text (R, L, C) -> (R, T, S, C); see `STDiT2Block`.
    """

    differentiable = (0, 1, 2)  # the inputs that receive gradients: x, modulation, text

    def construct(
        self, x: Tensor, modulation: Tensor, text: Union[Tensor, tuple], text_mask: Optional[Tensor]
    ) -> Tensor:
        modulation = self.modulated(modulation)
        x = self.self_attend(x, modulation)
        return self.feed_forward(self.cross_attend(x, text, text_mask), modulation)


class STDiT2Block(ModulatedBlock):
    """x (B, T, S, C), modulations (B, F, 1, 6 C) and (B, F, 1, 3 C), text (R, L, C), text_mask -> (R, T, S, C).

    x and the modulations are float32. The text may be the pair of its keys and values. R is a multiple of B: what
    precedes the cross-attention is computed once for all texts of a video.
    """

    keep_float32 = ("scale_shift_table", "scale_shift_table_temporal")
    differentiable = (0, 1, 2, 3)  # the inputs that receive gradients: x, both modulations, text

    def __init__(self, config: STDiT2Config):
        super().__init__()
        width, heads = config.hidden_size, config.num_heads
        self.scale_shift_table = scale_shift_table(6, width)
        self.scale_shift_table_temporal = scale_shift_table(3, width)
        self.attn = SelfAttention(width, heads, along_time=False, qk_norm=config.qk_norm)
        self.attn_temp = SelfAttention(width, heads, along_time=True, proj="zeros", qk_norm=config.qk_norm)
        self.cross_attn = CrossAttention(width, heads)
        self.mlp = Mlp(width, int(width * config.mlp_ratio), width)

    def construct(
        self,
        x: Tensor,
        modulation: Tensor,
        temporal: Tensor,
        text: Union[Tensor, tuple],
        text_mask: Optional[Tensor],
        cos: Tensor,
        sin: Tensor,
    ) -> Tensor:
        modulation = self.modulated(modulation)
        temporal = self.scale_shift_table_temporal + temporal.reshape(*temporal.shape[:2], 3, -1)

        x = self.self_attend(x, modulation)
        h = modulated_layer_norm(x, temporal, SHIFT_TIME, EPS)
        x = gated_residual(x, temporal, GATE_TIME, self.attn_temp(h, cos, sin))
        return self.feed_forward(self.cross_attend(x, text, text_mask), modulation)


class FinalLayer(nn.Cell):
    """Tokens (R, T, S, C) to patches (R, T, S, outputs); t (B, C) is the timestep's embedding.

    Conditioning frames (`x_mask` (B, T) False) are modulated like all others, then normalized and modulated again by
    t0 (B, C), the embedding of timestep 0. This oddity of the published model affects its output for these frames.
    """

    keep_float32 = ("scale_shift_table",)

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.scale_shift_table = scale_shift_table(2, width)
        self.linear = make_linear(width, outputs, "zeros")

    def construct(self, x: Tensor, t: Tensor, x_mask: Optional[Tensor], t0: Optional[Tensor]) -> Tensor:
        x = self.modulated(x, t)
        if x_mask is not None:
            x_mask = repeat_rows(x_mask, x.shape[0])
            x = select(x, self.modulated(x, t0), x_mask.expand_dims(2).expand_dims(3))
        return self.linear(x)

    def modulated(self, x: Tensor, t: Tensor) -> Tensor:
        modulation = self.scale_shift_table + repeat_rows(t, x.shape[0]).expand_dims(1)  # R 2 C
        return modulated_layer_norm(x, modulation.expand_dims(1), 0, EPS)
