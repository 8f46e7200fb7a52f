"""The adaLN-Zero block of DiT (Peebles & Xie 2023, arXiv:2212.09748, section 3.2), and the embedding of classes."""

from __future__ import annotations

import mindspore as ms
from mindspore import Tensor, nn

from opensora.models.common.layers import Embedding
from opensora.models.dit_xl.config import DiTConfig
from opensora.models.stdit.blocks import EPS, ModulatedBlock, SelfAttention
from opensora.models.stdit.embeddings import SMALL, Mlp, make_linear
from opensora.ops.norms import modulated_layer_norm


def make_modulation(width: int, rows: int) -> nn.SequentialCell:
    """The layers from a condition (B, C) to shifts, scales and gates (B, `rows` C), which are initially zero."""
    return nn.SequentialCell(nn.SiLU(), make_linear(width, rows * width, "zeros"))


def split_modulation(modulation: Tensor, rows: int) -> Tensor:
    """(B, `rows` C) -> (B, 1, `rows`, C) float32."""
    return modulation.reshape(modulation.shape[0], 1, rows, -1).astype(ms.float32)


class DiTBlock(ModulatedBlock):
    """Self-attention within each frame, or `along_time` within each spatial position, and MLP.

    x (B, T, S, C) and condition (B, C), both float32 -> (B, T, S, C).
    """

    keep_float32 = ()
    differentiable = (0, 1)  # the inputs that receive gradients

    def __init__(self, config: DiTConfig, along_time: bool):
        super().__init__()
        width = config.hidden_size
        self.attn = SelfAttention(width, config.num_heads, along_time)
        self.mlp = Mlp(width, int(width * config.mlp_ratio), width)
        self.adaLN_modulation = make_modulation(width, 6)

    def construct(self, x: Tensor, condition: Tensor) -> Tensor:
        modulation = split_modulation(self.adaLN_modulation(condition), 6)
        return self.feed_forward(self.self_attend(x, modulation), modulation)


class FinalLayer(nn.Cell):
    """Tokens (B, T, S, C) and condition (B, C) to patches (B, T, S, outputs)."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.linear = make_linear(width, outputs, "zeros")
        self.adaLN_modulation = make_modulation(width, 2)

    def construct(self, x: Tensor, condition: Tensor) -> Tensor:
        modulation = split_modulation(self.adaLN_modulation(condition), 2)
        return self.linear(modulated_layer_norm(x, modulation, 0, EPS))


class LabelEmbedder(nn.Cell):
    """Embeds the numbers of classes (B,) -> (B, C) float32. The number of all classes means no condition."""

    keep_float32 = ("embedding_table.weight",)

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.embedding_table = Embedding(classes + 1, width, SMALL)

    def construct(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels.reshape(-1))
