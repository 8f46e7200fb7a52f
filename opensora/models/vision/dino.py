"""The vision transformer of DINO (Caron et al. 2021, arXiv:2104.14294), with the names of facebookresearch/dino."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Union

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from opensora.errors import UserError
from opensora.models.common.layers import LayerNorm, Linear
from opensora.models.model_config import ModelConfig
from opensora.models.pretrained import PretrainedModel
from opensora.models.vision.patches import PatchEmbedding
from opensora.ops.activations import gelu
from opensora.ops.attention import self_attention
from opensora.ops.layout import permute
from opensora.utils.interpolation import bicubic_weights

INITIAL_STD = 0.02
SIZE_OFFSET = 0.1  # of the published interpolation, see `DINO.positions`
CUBIC = -0.75  # parameter of the published cubic filter


@dataclass(frozen=True)
class DINOConfig(ModelConfig):
    """The sizes of the model; the defaults are those of ViT-B/16.

    Raises:
        UserError: sizes that do not fit together.
    """

    img_size: int = 224
    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    layer_norm_eps: float = 1e-6

    def __post_init__(self):
        if self.embed_dim % self.num_heads:
            raise UserError(f"embed_dim {self.embed_dim} is not a multiple of num_heads {self.num_heads}")
        if self.img_size % self.patch_size:
            raise UserError(f"img_size {self.img_size} is not a multiple of patch_size {self.patch_size}")

    @property
    def grid(self) -> int:
        """Patches along a side of the images of the training."""
        return self.img_size // self.patch_size


class Attention(nn.Cell):
    """Self-attention. (B, L, D) -> (B, L, D)."""

    def __init__(self, config: DINOConfig):
        super().__init__()
        self.qkv = Linear(config.embed_dim, 3 * config.embed_dim, config.qkv_bias)
        self.proj = Linear(config.embed_dim, config.embed_dim)
        self.heads = config.num_heads

    def construct(self, x: Tensor) -> Tensor:
        b, length, width = x.shape
        qkv = permute(self.qkv(x).reshape(b, length, 3, self.heads, -1), (2, 0, 1, 3, 4))
        return self.proj(self_attention(qkv.reshape(3 * b, length, self.heads, -1)).reshape(b, length, width))


class MLP(nn.Cell):
    """Linear, GELU, linear."""

    def __init__(self, config: DINOConfig):
        super().__init__()
        hidden = int(config.embed_dim * config.mlp_ratio)
        self.fc1, self.fc2 = Linear(config.embed_dim, hidden), Linear(hidden, config.embed_dim)

    def construct(self, x: Tensor) -> Tensor:
        return self.fc2(gelu(self.fc1(x)))


class Block(nn.Cell):
    """Self-attention and MLP, each with a norm before it and a residual connection. (B, L, D) -> (B, L, D)."""

    def __init__(self, config: DINOConfig):
        super().__init__()
        self.norm1 = LayerNorm(config.embed_dim, config.layer_norm_eps)
        self.attn = Attention(config)
        self.norm2 = LayerNorm(config.embed_dim, config.layer_norm_eps)
        self.mlp = MLP(config)

    def construct(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Patches(nn.Cell):
    """The patch embedding, under its published name."""

    def __init__(self, config: DINOConfig):
        super().__init__()
        self.proj = PatchEmbedding(config.embed_dim, config.patch_size, bias=True)

    def construct(self, pixels: Tensor) -> Tensor:
        return self.proj(pixels)


class DINO(PretrainedModel):
    """Images (B, 3, H, W) -> the normalized state of the class token (B, D)."""

    config_class = DINOConfig
    config: DINOConfig
    keep_float32 = ("cls_token", "pos_embed")
    ignored_prefixes = ("head.",)  # of the training

    def __init__(self, **values):
        super().__init__()
        self.config = config = DINOConfig.from_dict(values)
        width, self.grid = config.embed_dim, config.grid
        self.cls_token = Parameter(initializer(Normal(INITIAL_STD), (1, 1, width), ms.float32))
        self.pos_embed = Parameter(initializer(Normal(INITIAL_STD), (1, 1 + self.grid**2, width), ms.float32))
        self.patch_embed = Patches(config)
        self.blocks = nn.CellList([Block(config) for _ in range(config.depth)])
        self.norm = LayerNorm(width, config.layer_norm_eps)
        self.patch_size = config.patch_size

    @classmethod
    def load(cls, path: Union[str, Path], **sizes) -> DINO:
        """The model from a file of weights, `dino_vitbase16_pretrain.pth`; `sizes`: keys of the config.

        Raises:
            FileNotFoundError: no such file.
            UserError: other weights.
        """
        return cls.from_pretrained(path, config=sizes)

    def construct(self, pixels: Tensor) -> Tensor:
        x = self.patch_embed(pixels)
        token = ops.tile(self.cls_token, (x.shape[0], 1, 1)).astype(x.dtype)
        positions = self.positions(pixels.shape[2] // self.patch_size, pixels.shape[3] // self.patch_size)
        x = ops.cat((token, x), 1) + positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, 0])

    def positions(self, rows: int, columns: int) -> Tensor:
        """The position embedding (1, 1 + rows columns, D) for a grid of patches.

        A grid of another size than that of the training gets the embedding by bicubic interpolation with scales
        (n + 0.1) / grid, as published, not n / grid.
        """
        if rows == self.grid and columns == self.grid:
            return self.pos_embed
        of_class, of_patches = self.pos_embed[:, :1], self.pos_embed[0, 1:]
        along_rows = _interpolation(self.grid, rows)
        along_columns = _interpolation(self.grid, columns)
        table = ops.matmul(along_rows, of_patches.reshape(self.grid, -1)).reshape(rows, self.grid, -1)
        table = ops.matmul(along_columns, table)  # rows, columns, D
        return ops.cat((of_class, table.reshape(1, rows * columns, -1)), 1)


@ops.constexpr
def _interpolation(size: int, count: int) -> Tensor:
    scale = (count + SIZE_OFFSET) / size
    return Tensor(bicubic_weights(size, count, 1 / scale, CUBIC))
