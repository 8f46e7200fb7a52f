"""Embeddings of STDiT2's inputs: patches of latents, their positions, scalars that describe the video, the text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional, Union

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Initializer, Normal, Uniform, XavierUniform, initializer

from opensora.models.common.embeddings import TIMESTEP_CHANNELS, SinusoidalEmbedding
from opensora.models.common.layers import Linear, LinearGELU, WeightLayer
from opensora.ops.layout import permute
from opensora.ops.linear import linear
from opensora.ops.rope import inverse_frequencies

SMALL = 0.02  # standard deviation of the initial weights of the timestep and text embedders


def make_linear(
    in_features: int, out_features: int, weight: Union[str, Initializer, None] = None, kind: type[Linear] = Linear
) -> Linear:
    """A linear layer with zero bias; the default initialization is Xavier-uniform (Glorot & Bengio 2010)."""
    layer = kind(in_features, out_features)
    layer.weight = Parameter(initializer(weight or XavierUniform(), (out_features, in_features), ms.float32))
    layer.bias = Parameter(initializer("zeros", (out_features,), ms.float32))
    return layer


class Mlp(nn.Cell):
    """Linear, GELU (tanh approximation), linear."""

    def __init__(self, in_features: int, hidden: int, out_features: int, weight: Optional[Initializer] = None):
        super().__init__()
        self.fc1 = make_linear(in_features, hidden, weight, LinearGELU)
        self.fc2 = make_linear(hidden, out_features, weight)

    def construct(self, x: Tensor) -> Tensor:
        return self.fc2(self.fc1(x))


class PatchProjection(WeightLayer):
    """A linear projection of patches (..., C pt ph pw) -> (..., D), with the weight shape of a convolution."""

    def __init__(self, patch_size: Sequence[int], in_channels: int, embed_dim: int):
        super().__init__()
        self.inputs = in_channels * math.prod(patch_size)
        bound = math.sqrt(6 / (self.inputs + embed_dim))  # Xavier-uniform of the linear layer
        self.weight = Parameter(initializer(Uniform(bound), (embed_dim, in_channels, *patch_size), ms.float32))
        self.bias = Parameter(initializer("zeros", (embed_dim,), ms.float32))

    def construct(self, patches: Tensor) -> Tensor:
        weight = self.wide_weight()
        return linear(patches.astype(weight.dtype), weight.reshape(-1, self.inputs), self.bias)


class PatchEmbed3D(nn.Cell):
    """(B, C, T, H, W) -> (B, t, h, w, D): patches of pt x ph x pw, with zero padding at the end of each axis."""

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
    """Angles of the positions in a frame, (S, 2, dim / 4) float32, row-major: of the column, then of the row."""
    positions = np.stack(np.meshgrid(columns, rows), -1)  # h w 2
    return (positions.reshape(-1, 2, 1) * inverse_frequencies(dim // 2)).astype(np.float32)


@ops.constexpr
def _frame_angles(h: int, w: int, dim: int) -> Tensor:
    """Angles of h x w tokens, with positions scaled to a square of the same area."""
    side = round(math.sqrt(h * w))
    return Tensor(grid_angles(np.arange(h) * side / h, np.arange(w) * side / w, dim))


def position_embedding(angles: Tensor, scale: Tensor) -> Tensor:
    """Sines and cosines of angles (S, 2, D / 4) divided by `scale`: (S, D)."""
    angles = angles / scale
    return ops.stack((ops.sin(angles), ops.cos(angles)), 2).reshape(angles.shape[0], -1)


class FramePositions(nn.Cell):
    """Position embedding of a frame of h x w tokens, (h w, D) float32, scaled by sqrt(height width) / `square`.

    `height` and `width` (B,) are in pixels; all samples of a batch have the size of the first.
    """

    def __init__(self, dim: int, square: int):
        super().__init__()
        self.dim, self.square = dim, square

    def construct(self, h: int, w: int, height: Tensor, width: Tensor) -> Tensor:
        scale = ops.sqrt(height[0] * width[0]) / self.square
        return position_embedding(_frame_angles(h, w, self.dim), scale)


class ScalarEmbedder(nn.Cell):
    """Sinusoidal embedding of a scalar, then an MLP. (B,) -> (B, D) float32."""

    keep_float32 = True

    def __init__(self, embed_dim: int, weight: Optional[Initializer] = None):
        super().__init__()
        self.sinusoids = SinusoidalEmbedding()
        self.mlp = nn.SequentialCell(
            make_linear(TIMESTEP_CHANNELS, embed_dim, weight), nn.SiLU(), make_linear(embed_dim, embed_dim, weight)
        )

    def construct(self, values: Tensor) -> Tensor:
        return self.mlp(self.sinusoids(values))


class Modulation(nn.SequentialCell):
    """Shifts, scales and gates of all blocks from the embedding of the timestep: (B, D) -> (B, `rows` D) float32."""

    keep_float32 = True

    def __init__(self, width: int, rows: int):
        super().__init__(nn.SiLU(), make_linear(width, rows * width, Normal(SMALL)))


class CaptionEmbedder(nn.Cell):
    """Projects text states (B, L, caption_channels) to the transformer's width.

    The null text `y_embedding`, for classifier-free guidance, is random and not trained. It is float32, as the states
    of texts are.
    """

    keep_float32 = ("y_embedding",)

    def __init__(self, caption_channels: int, hidden_size: int, max_length: int):
        super().__init__()
        self.y_embedding = Parameter(
            initializer(Normal(1 / math.sqrt(caption_channels)), (max_length, caption_channels), ms.float32),
            requires_grad=False,
        )
        self.y_proj = Mlp(caption_channels, hidden_size, hidden_size, Normal(SMALL))

    def construct(self, y: Tensor) -> Tensor:
        return self.y_proj(y)
