"""What goes into STDiT2: patches of latents and their places, numbers that describe the video, the text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Initializer, Normal, Uniform, XavierUniform, initializer

from opensora.models.common.layers import Linear, LinearGELU
from opensora.models.dit.embeddings import TIMESTEP_CHANNELS, Sinusoids
from opensora.ops.layout import permute
from opensora.ops.linear import linear
from opensora.ops.rope import inverse_frequencies

SMALL = 0.02  # deviation of the first weights of what takes in the timestep and the text


def make_linear(
    in_features: int, out_features: int, weight: Optional[Initializer] = None, kind: type[Linear] = Linear
) -> Linear:
    """A linear map that starts without bias and, unless told otherwise, Xavier-uniform (Glorot & Bengio 2010)."""
    layer = kind(in_features, out_features)
    layer.weight = Parameter(initializer(weight or XavierUniform(), (out_features, in_features), ms.float32))
    layer.bias = Parameter(initializer("zeros", (out_features,), ms.float32))
    return layer


class Mlp(nn.Cell):
    """Linear, GELU, linear."""

    def __init__(self, in_features: int, hidden: int, out_features: int, weight: Optional[Initializer] = None):
        super().__init__()
        self.fc1 = make_linear(in_features, hidden, weight, LinearGELU)
        self.fc2 = make_linear(hidden, out_features, weight)

    def construct(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))


class PatchProjection(nn.Cell):
    """The linear map of patches (..., C pt ph pw) -> (..., D), stored as a convolution's weights."""

    def __init__(self, patch_size: Sequence[int], in_channels: int, embed_dim: int):
        super().__init__()
        self.inputs = in_channels * math.prod(patch_size)
        bound = math.sqrt(6 / (self.inputs + embed_dim))  # Xavier-uniform of the linear map
        self.weight = Parameter(initializer(Uniform(bound), (embed_dim, in_channels, *patch_size), ms.float32))
        self.bias = Parameter(initializer("zeros", (embed_dim,), ms.float32))

    def construct(self, patches: Tensor) -> Tensor:
        return linear(patches, self.weight.reshape(-1, self.inputs), self.bias)


class PatchEmbed3D(nn.Cell):
    """(B, C, T, H, W) -> (B, t, h, w, D): patches of pt x ph x pw, each a token; zeros fill up the last ones."""

    def __init__(self, patch_size: Sequence[int], in_channels: int, embed_dim: int):
        super().__init__()
        self.patch_size = tuple(patch_size)
        self.proj = PatchProjection(patch_size, in_channels, embed_dim)

    def construct(self, x: Tensor) -> Tensor:
        (pt, ph, pw), (b, c, t, h, w) = self.patch_size, x.shape
        x = ops.pad(x, (0, -w % pw, 0, -h % ph, 0, -t % pt))
        t, h, w = -(-t // pt), -(-h // ph), -(-w // pw)
        x = permute(x.reshape(b, c, t, pt, h, ph, w, pw), (0, 2, 4, 6, 1, 3, 5, 7))  # B t h w C pt ph pw
        return self.proj(x.reshape(b, t, h, w, -1))


def grid_angles(rows: np.ndarray, columns: np.ndarray, dim: int) -> np.ndarray:
    """Angles of places in a frame, (S, 2, dim / 4) float32 in row-major order: of the column, then of the row."""
    places = np.stack(np.meshgrid(columns, rows), -1)  # h w 2
    return (places.reshape(-1, 2, 1) * inverse_frequencies(dim // 2)).astype(np.float32)


@ops.constexpr
def _frame_angles(h: int, w: int, dim: int) -> Tensor:
    """Those of h x w tokens that span a square of as many: whatever the shape, places cover the same range."""
    side = round(math.sqrt(h * w))
    return Tensor(grid_angles(np.arange(h) * side / h, np.arange(w) * side / w, dim))


def position_embedding(angles: Tensor, scale: Tensor) -> Tensor:
    """Sines and cosines of angles (S, 2, D / 4) divided by `scale`, (S, D)."""
    angles = angles / scale
    return ops.stack((ops.sin(angles), ops.cos(angles)), 2).reshape(angles.shape[0], -1)


class FramePositions(nn.Cell):
    """Places in a frame of h x w tokens, (h w, D) float32, on a grid whose unit follows from the pixels' number.

    `height` and `width` (B,) are in pixels; a batch has one size, its first sample's.
    """

    def __init__(self, dim: int, square: int):
        super().__init__()
        self.dim, self.square = dim, square

    def construct(self, h: int, w: int, height: Tensor, width: Tensor) -> Tensor:
        scale = ops.sqrt(height[0] * width[0]) / self.square
        return position_embedding(_frame_angles(h, w, self.dim), scale)


class NumberEmbedder(nn.Cell):
    """A number of each sample, (B,) -> (B, D): sinusoids and two linear maps."""

    def __init__(self, embed_dim: int, weight: Optional[Initializer] = None):
        super().__init__()
        self.sinusoids = Sinusoids()
        self.mlp = nn.SequentialCell(
            make_linear(TIMESTEP_CHANNELS, embed_dim, weight), nn.SiLU(), make_linear(embed_dim, embed_dim, weight)
        )

    def construct(self, values: Tensor) -> Tensor:
        return self.mlp(self.sinusoids(values).astype(self.mlp[0].weight.dtype))


class CaptionEmbedder(nn.Cell):
    """Text states (B, L, caption_channels) to the transformer's width.

    In training, samples lose their text for that of no prompt, `y_embedding`, which is random and never trained; so
    the model learns both that guidance needs (Ho & Salimans 2022, algorithm 1).
    """

    def __init__(self, caption_channels: int, hidden_size: int, max_length: int, dropout: float):
        super().__init__()
        self.y_embedding = Parameter(
            initializer(Normal(1 / math.sqrt(caption_channels)), (max_length, caption_channels), ms.float32),
            requires_grad=False,
        )
        self.y_proj = Mlp(caption_channels, hidden_size, hidden_size, Normal(SMALL))
        self.dropout = dropout

    def construct(self, y: Tensor) -> Tensor:
        y = y.astype(self.y_embedding.dtype)
        if self.training and self.dropout > 0:
            y = ops.where(ops.rand(y.shape[0], 1, 1) < self.dropout, self.y_embedding, y)
        return self.y_proj(y)
