"""DiT and Latte of Open-Sora v1.0 (hpcaitech, github.com/hpcaitech/Open-Sora, tag v1.0.0).

DiT (Peebles & Xie 2023, arXiv:2212.09748) attends to the tokens of all frames. Latte (Ma et al. 2024, arXiv:2401.03048,
section 3.2, variant 1) alternates attention within frames and along time.
"""

from __future__ import annotations

import math
from typing import Optional, Union

import mindspore as ms
from mindspore import Tensor, nn, ops

from opensora.models.common.rows import repeat_rows
from opensora.models.dit_xl.blocks import DiTBlock, FinalLayer, LabelEmbedder
from opensora.models.dit_xl.config import DiTConfig, LatteConfig
from opensora.models.stdit.base import FixedSizeTransformer
from opensora.models.stdit.embeddings import CaptionEmbedder


class DiT(FixedSizeTransformer):
    """Predicts noise and its variance from noisy latents, conditioned on the timestep and a text or a class.

    Letters: B batch, C channels, T H W latent frames, height, width.
    """

    config_class: type[DiTConfig] = DiTConfig
    config: DiTConfig
    conditions = ("y", "text_states", "modulation")
    lora_targets = ("qkv", "proj")
    position_names = ("pos_embed_spatial", "pos_embed_temporal")

    def __init__(self, **values):
        config = self.config_class.from_dict(values)
        super().__init__(config)
        width = config.hidden_size
        # Graph mode reads no properties.
        self.classes, self.has_positions_in_time = config.classes, not config.no_temporal_pos_emb
        self.y_embedder: Union[CaptionEmbedder, LabelEmbedder]
        if config.classes is None:
            self.y_embedder = CaptionEmbedder(config.caption_channels, width, 1)
        else:
            self.y_embedder = LabelEmbedder(config.classes, width)
        self.blocks = nn.CellList([self.make_block(i) for i in range(config.depth)])
        self.blocks_to_run = tuple(self.blocks)
        self.final_layer = FinalLayer(width, math.prod(config.patch_size) * config.out_channels)

    def make_block(self, index: int) -> DiTBlock:
        """Block number `index`."""
        return DiTBlock(self.config, along_time=False)

    def construct(
        self,
        x: Tensor,
        timestep: Optional[Tensor],
        y: Optional[Tensor],
        text_states: Optional[tuple] = None,
        modulation: Optional[tuple] = None,
    ) -> Tensor:
        """The prediction for a batch of noisy latents.

        Args:
            x: noisy latents (B, C, T, H, W) of the size `input_size`.
            timestep: (B,); None if `modulation` is given.
            y: pooled text states (R, 1, 1, caption_channels), or integer classes (R,), of which the number of classes
                means no condition; None if `text_states` are given.
            text_states: precomputed by the method of that name.
            modulation: precomputed by `modulations`.

        Returns:
            (R, out_channels, T, H, W) float32.

        Raises:
            ValueError: latents of another size.
        """
        return self.predict(x, timestep, y, text_states, modulation)

    def prepare(
        self,
        x: Tensor,
        timestep: Optional[Tensor],
        y: Optional[Tensor],
        text_states: Optional[tuple] = None,
        modulation: Optional[tuple] = None,
    ) -> tuple:
        """The tokens (R, t, h w, D) before block 0, and what `run_blocks` and `head` need; arguments as of `construct`.

        The condition modulates block 0 already, so nothing is computed once for several texts of a video.
        """
        tokens, grid = self.embed(x)
        if modulation is None:
            modulation = self.modulations(timestep)
        if text_states is None:
            text_states = self.text_states(y)
        (time,), ((text,),) = modulation, text_states
        rows = text.shape[0]
        condition = repeat_rows(time, rows) + text
        return self.with_positions_in_time(repeat_rows(tokens, rows)), (grid, condition)

    def with_positions_in_time(self, tokens: Tensor) -> Tensor:
        """The tokens (R, t, h w, D) of all frames, (R, 1, t h w, D), with their positions in time."""
        if self.has_positions_in_time:
            tokens = tokens + self.positions_in_time()
        return tokens.reshape(tokens.shape[0], 1, -1, self.width)

    def run_blocks(self, tokens: Tensor, first: int, end: int, inputs: tuple) -> Tensor:
        """The tokens after block `end` - 1, from those before block `first`."""
        _, condition = inputs
        for block in self.blocks_to_run[first:end]:
            tokens = block(tokens, condition)
        return tokens

    def head(self, tokens: Tensor, inputs: tuple) -> Tensor:
        """The prediction (R, out_channels, T, H, W) float32 from the tokens after the last block."""
        grid, condition = inputs
        return self.prediction(self.final_layer(tokens, condition), grid)

    def modulations(self, timestep: Tensor) -> tuple:
        """The embeddings of timesteps (n,), (n, D), which are added to the condition."""
        return (self.t_embedder(timestep),)

    def text_states(self, y: Tensor) -> tuple:
        """The embeddings (R, D) of texts or classes, which are added to that of the timestep."""
        return ((self.embed_condition(y),),)

    def embed_condition(self, y: Tensor) -> Tensor:
        """The texts or classes, (B, D) float32; see `construct`."""
        if self.classes is None:
            return self.y_embedder(y.reshape(y.shape[0], -1)).astype(ms.float32)
        return self.y_embedder(y)

    def null_text(self, n: int) -> Tensor:
        """What stands for no condition, n times: (n, 1, 1, caption_channels), or classes (n,) int32."""
        if self.classes is None:
            return super().null_text(n)
        return ops.full((n,), self.classes, dtype=ms.int32)


class Latte(DiT):
    """DiT with attention within frames in blocks of even index, and along time in the others.

    The position embedding of the frames is added once, before block 1.
    """

    config_class = LatteConfig

    def make_block(self, index: int) -> DiTBlock:
        return DiTBlock(self.config, along_time=index % 2 == 1)

    def with_positions_in_time(self, tokens: Tensor) -> Tensor:
        return tokens

    def run_blocks(self, tokens: Tensor, first: int, end: int, inputs: tuple) -> Tensor:
        """The tokens (R, t, h w, D) after block `end` - 1, from those before block `first`."""
        _, condition = inputs
        for i, block in enumerate(self.blocks_to_run[first:end]):
            if first + i == 1:
                tokens = tokens + self.positions_in_time()
            tokens = block(tokens, condition)
        return tokens
