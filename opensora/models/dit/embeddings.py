"""What goes into the transformer: patches of latents, the timestep, the text."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from opensora.models.common.layers import Conv2d, Linear, LinearGELU
from opensora.ops.layout import permute, swap_frames_channels
from opensora.ops.rope import inverse_frequencies

TIMESTEP_CHANNELS = 256


class PatchEmbed2D(nn.Cell):
    """(B, C, T, H, W) -> (B, T H/p W/p, D): each frame's p x p patches, one linear map."""

    def __init__(self, patch_size: int, in_channels: int, embed_dim: int):
        super().__init__()
        self.proj = Conv2d(in_channels, embed_dim, patch_size, patch_size, padding=(0, 0, 0, 0))

    def construct(self, x: Tensor) -> Tensor:
        x = self.proj(swap_frames_channels(x))  # B T D H/p W/p
        return permute(x, (0, 1, 3, 4, 2)).reshape(x.shape[0], -1, x.shape[2])


class Sinusoids(nn.Cell):
    """Numbers as cosines and sines of them, cosines first (Ho et al. 2020, appendix B). (B,) -> (B, 256) float32."""

    def __init__(self):
        super().__init__()
        self.frequencies = Tensor(inverse_frequencies(TIMESTEP_CHANNELS).astype(np.float32))

    def construct(self, values: Tensor) -> Tensor:
        angles = values.astype(ms.float32).reshape(-1, 1) * self.frequencies
        return ops.cat((ops.cos(angles), ops.sin(angles)), 1)


class TimestepEmbedder(nn.Cell):
    """Sinusoids of the timestep and two linear maps. (B,) -> (B, D)."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.sinusoids = Sinusoids()
        self.linear_1 = Linear(TIMESTEP_CHANNELS, embed_dim)
        self.linear_2 = Linear(embed_dim, embed_dim)

    def construct(self, timestep: Tensor) -> Tensor:
        sinusoids = self.sinusoids(timestep).astype(self.linear_1.weight.dtype)
        return self.linear_2(ops.silu(self.linear_1(sinusoids)))


class CombinedTimestepEmbedder(nn.Cell):
    """Only there for the published names (`adaln_single.emb.timestep_embedder`)."""

    def __init__(self, embed_dim: int):
        super().__init__()
        self.timestep_embedder = TimestepEmbedder(embed_dim)

    def construct(self, timestep: Tensor) -> Tensor:
        return self.timestep_embedder(timestep)


class AdaLayerNormSingle(nn.Cell):
    """One modulation for all blocks (Chen et al. 2023, PixArt-alpha, section 2.3).

    (B,) -> modulation (B, 6, D) and the timestep's embedding (B, D).
    """

    def __init__(self, embed_dim: int):
        super().__init__()
        self.emb = CombinedTimestepEmbedder(embed_dim)
        self.linear = Linear(embed_dim, 6 * embed_dim)

    def construct(self, timestep: Tensor):
        embedded = self.emb(timestep)
        modulation = self.linear(ops.silu(embedded))
        return modulation.reshape(embedded.shape[0], 6, -1), embedded


class TextProjection(nn.Cell):
    """Text states to the transformer's width: linear, GELU, linear."""

    def __init__(self, in_features: int, hidden_size: int):
        super().__init__()
        self.linear_1 = LinearGELU(in_features, hidden_size)
        self.linear_2 = Linear(hidden_size, hidden_size)

    def construct(self, x: Tensor) -> Tensor:
        return self.linear_2(self.linear_1(x))
