"""Embeddings of the transformer's inputs: patches of latents, the timestep, the text."""

from __future__ import annotations

from mindspore import Tensor, nn, ops

from opensora.models.common.embeddings import TIMESTEP_CHANNELS, SinusoidalEmbedding
from opensora.models.common.layers import Conv2d, Linear, LinearGELU
from opensora.ops.layout import permute, swap_frames_channels


class PatchEmbed2D(nn.Cell):
    """(B, C, T, H, W) -> (B, T H/p W/p, D): a linear projection of each frame's p x p patches."""

    def __init__(self, patch_size: int, in_channels: int, embed_dim: int):
        super().__init__()
        self.proj = Conv2d(in_channels, embed_dim, patch_size, patch_size, padding=(0, 0, 0, 0))

    def construct(self, x: Tensor) -> Tensor:
        x = self.proj(swap_frames_channels(x))  # B T D H/p W/p
        return permute(x, (0, 1, 3, 4, 2)).reshape(x.shape[0], -1, x.shape[2])


class TimestepEmbedder(nn.Cell):
    """Sinusoidal embedding of the timestep, then an MLP. (B,) -> (B, D)."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.sinusoids = SinusoidalEmbedding()
        self.linear_1 = Linear(TIMESTEP_CHANNELS, embed_dim)
        self.linear_2 = Linear(embed_dim, embed_dim)

    def construct(self, timestep: Tensor) -> Tensor:
        return self.linear_2(ops.silu(self.linear_1(self.sinusoids(timestep))))


class CombinedTimestepEmbedder(nn.Cell):
    """Gives the parameters their published names (`adaln_single.emb.timestep_embedder`)."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(embed_dim)

    def construct(self, timestep: Tensor) -> Tensor:
        return self.timestep_embedder(timestep)


class AdaLayerNormSingle(nn.Cell):
    """One modulation for all blocks (Chen et al. 2023, PixArt-alpha, arXiv:2310.00426, section 2.3).

    (B,) -> modulation (B, 6, D) and the embedding of the timestep (B, D), both float32.
    """

    keep_float32 = True

    def __init__(self, embed_dim: int):
        super().__init__()
        self.emb = CombinedTimestepEmbedder(embed_dim)
        self.linear = Linear(embed_dim, 6 * embed_dim)

    def construct(self, timestep: Tensor):
        embedded = self.emb(timestep)
        modulation = self.linear(ops.silu(embedded))
        return modulation.reshape(embedded.shape[0], 6, -1), embedded


class TextProjection(nn.Cell):
    """Projects text states (B, L, caption_channels) to the transformer's width: linear, GELU, linear."""

    def __init__(self, in_features: int, hidden_size: int):
        super().__init__()
        self.linear_1 = LinearGELU(in_features, hidden_size)
        self.linear_2 = Linear(hidden_size, hidden_size)

    def construct(self, x: Tensor) -> Tensor:
        return self.linear_2(self.linear_1(x))
