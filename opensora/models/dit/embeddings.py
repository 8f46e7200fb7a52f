"""Embeddings of the transformer's inputs: patches of latents, their positions, the timestep, the text."""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops

from opensora.models.common.embeddings import (
    TIMESTEP_CHANNELS,
    SinusoidalEmbedding,
    position_embedding_1d,
    position_embedding_2d,
)
from opensora.models.common.layers import Conv2d, Linear, LinearGELU
from opensora.ops.layout import permute
from opensora.ops.linear import linear


class PatchEmbed2D(nn.Cell):
    """(B, C, T, H, W) -> (B, T H/p W/p, D): a linear projection of each frame's p x p patches.

    Its weight has the shape of a convolution. The matrix product is the same, and Ascend computes it in bfloat16 too.
    """

    def __init__(self, patch_size: int, in_channels: int, embed_dim: int):
        super().__init__()
        self.proj = Conv2d(in_channels, embed_dim, patch_size, patch_size, padding=(0, 0, 0, 0))
        self.patch_size = patch_size

    def construct(self, x: Tensor) -> Tensor:
        p, (b, c, t, h, w), weight = self.patch_size, x.shape, self.proj.wide_weight()
        x = permute(x.reshape(b, c, t, h // p, p, w // p, p), (0, 2, 3, 5, 1, 4, 6))  # B T H/p W/p C p p
        patches = x.reshape(b, t * (h // p) * (w // p), c * p * p).astype(weight.dtype)
        return linear(patches, weight.reshape(-1, c * p * p), self.proj.bias)


@ops.constexpr
def frame_positions(grid: tuple, trained: tuple, scales: tuple, dim: int) -> Tensor:
    """Sinusoidal embedding of the positions in a frame, (rows columns, dim) float32, row-major.

    Args:
        grid: rows and columns of tokens.
        trained: those in training, to which the positions are stretched.
        scales: what they are divided by then.
    """
    rows, columns = (np.arange(n) * full / n / scale for n, full, scale in zip(grid, trained, scales))
    return Tensor(position_embedding_2d(rows, columns, dim))


@ops.constexpr
def time_positions(frames: int, trained: int, scale: float, dim: int) -> Tensor:
    """Sinusoidal embedding of the frames, (frames, 1, dim) float32; arguments as of `frame_positions`."""
    return Tensor(position_embedding_1d(np.arange(frames) * trained / frames / scale, dim)[:, None])


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
