"""Base of the transformers of Open-Sora v1.0 that have cross-attention to the text: PixArt and STDiT."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional

from mindspore import Tensor, nn

from opensora.models.stdit.base import FixedSizeTransformer
from opensora.models.stdit.blocks import FinalLayer
from opensora.models.stdit.config import CaptionedConfig
from opensora.models.stdit.embeddings import CaptionEmbedder, Modulation
from opensora.ops.attention import prepare_attention_mask


class CaptionedTransformer(FixedSizeTransformer):
    """One modulation for all blocks, cross-attention to the text, and the published names of the parts."""

    config: CaptionedConfig

    def __init__(self, config: CaptionedConfig, blocks: Sequence[nn.Cell]):
        super().__init__(config, config.space_scale, config.time_scale)
        width = config.hidden_size
        self.t_block = Modulation(width, 6)
        self.y_embedder = CaptionEmbedder(config.caption_channels, width, config.model_max_length)
        self.blocks = nn.CellList(list(blocks))
        self.blocks_to_run = tuple(self.blocks)
        self.final_layer = FinalLayer(width, math.prod(config.patch_size) * config.out_channels)
        self.freeze(config.freeze)

    def embed_text(self, y: Tensor, mask: Optional[Tensor], queries: int) -> tuple[Tensor, Optional[Tensor]]:
        """Text states (B, 1, L, caption_channels) and mask (B, L) -> (B, L, D) and the mask for `attention`."""
        text = self.y_embedder(y[:, 0])
        if mask is None:
            return text, None
        return text, prepare_attention_mask(mask.reshape(-1, mask.shape[-1]), queries, self.x_embedder.proj.dtype())
