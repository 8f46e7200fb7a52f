"""Base of the transformers of Open-Sora v1.0 that have cross-attention to the text: PixArt and STDiT."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mindspore import Tensor, nn

from opensora.models.stdit.base import FixedSizeTransformer
from opensora.models.stdit.blocks import FinalLayer
from opensora.models.stdit.config import CaptionedConfig
from opensora.models.stdit.embeddings import CaptionEmbedder, Modulation


class CaptionedTransformer(FixedSizeTransformer):
    """One modulation for all blocks, cross-attention to the text, and the published names of the parts.

    The second result of `prepare` ends with what `head` needs: (t, h, w), the embedding of the timestep (B, D), and for
    conditioning frames their mask (B, T) and the embedding of timestep 0, else None.
    """

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

    def modulations_of(self, time: Tensor) -> tuple:
        """The embeddings of timesteps (n, D), and with them the modulations of all blocks, (n, 6 D)."""
        return time, self.t_block(time)

    def head(self, tokens: Tensor, inputs: tuple) -> Tensor:
        """The prediction (R, out_channels, T, H, W) float32 from the tokens after the last block."""
        grid, time, x_mask, t0 = inputs[-1]
        return self.prediction(self.final_layer(tokens, time, x_mask, t0), grid)
