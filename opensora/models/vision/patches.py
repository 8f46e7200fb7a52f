"""The patch embedding of vision transformers."""

from __future__ import annotations

import math

import mindspore as ms
from mindspore import Parameter, Tensor, nn
from mindspore.common.initializer import Uniform, initializer

from opensora.ops.layout import permute
from opensora.ops.linear import linear
from opensora.ops.precision import cast


class PatchEmbedding(nn.Cell):
    """A convolution whose stride is its kernel size (Dosovitskiy et al. 2020, arXiv:2010.11929, section 3.1).

    (B, 3, H, W) -> (B, h w, D), row by row. Pixels beyond a multiple of the patch size have no effect.
    """

    def __init__(self, width: int, patch_size: int, bias: bool):
        super().__init__()
        bound = Uniform(1 / math.sqrt(3 * patch_size**2))
        self.weight = Parameter(initializer(bound, (width, 3, patch_size, patch_size), ms.float32))
        self.bias = Parameter(initializer(bound, (width,), ms.float32)) if bias else None
        self.patch_size = patch_size

    def construct(self, pixels: Tensor) -> Tensor:
        b, channels, height, width = pixels.shape
        p = self.patch_size
        rows, columns = height // p, width // p
        if height % p or width % p:
            pixels = pixels[:, :, : rows * p, : columns * p]
        patches = permute(pixels.reshape(b, channels, rows, p, columns, p), (0, 2, 4, 1, 3, 5))
        patches = cast(patches.reshape(b, rows * columns, -1), self.weight.dtype)
        return linear(patches, self.weight.reshape(self.weight.shape[0], -1), self.bias)
