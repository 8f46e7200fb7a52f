"""STDiT, the diffusion transformer of Open-Sora v1.0 (hpcaitech, github.com/hpcaitech/Open-Sora, tag v1.0.0).

It is PixArt-alpha (Chen et al. 2023, arXiv:2310.00426) with attention along time in every block.
"""

from __future__ import annotations

from typing import Optional, Union

from mindspore import Tensor, ops

from opensora.models.common.rows import repeat_rows
from opensora.models.stdit.blocks import GATE_SPACE, CaptionedBlock, SelfAttention
from opensora.models.stdit.captioned import CaptionedTransformer
from opensora.models.stdit.config import STDiTConfig
from opensora.ops.norms import gated_residual


class STDiTBlock(CaptionedBlock):
    """Spatial, temporal and cross-attention, MLP.

    Temporal attention has no norm and no modulation of its input, and the gate of spatial attention.

    x (B, T, S, C), modulation (B, F, 1, 6 C) and (B, 1, 1, 6 C), both float32, text (R, L, C) -> (R, T, S, C); see
    `STDiT2Block`. F is T if there are conditioning frames, whose modulation is that of timestep 0, else 1. The second
    modulation is that of the timestep, for all frames. `positions` (T, 1, C) are added to the input of temporal
    attention.
    """

    differentiable = (0, 1, 2, 3)  # the inputs that receive gradients: x, both modulations, text

    def __init__(self, config: STDiTConfig):
        super().__init__(config)
        self.attn_temp = SelfAttention(config.hidden_size, config.num_heads, along_time=True, proj="zeros")

    def construct(
        self,
        x: Tensor,
        modulation: Tensor,
        temporal: Tensor,
        text: Union[Tensor, tuple],
        text_mask: Optional[Tensor],
        positions: Optional[Tensor],
    ) -> Tensor:
        modulation, temporal = self.modulated(modulation), self.modulated(temporal)
        x = self.self_attend(x, modulation)
        y = self.attn_temp(x if positions is None else x + positions)
        x = gated_residual(x, temporal, GATE_SPACE, y)
        return self.feed_forward(self.cross_attend(x, text, text_mask), modulation)


class STDiT(CaptionedTransformer):
    """Predicts noise and its variance from noisy latents, conditioned on the timestep and the text.

    Letters: B batch, C channels, T H W latent frames, height, width; L tokens of the text.
    """

    config_class = STDiTConfig
    config: STDiTConfig
    conditions = ("y", "mask", "x_mask", "text_states", "modulation", "modulation_of_zero")

    def __init__(self, **values):
        config = STDiTConfig.from_dict(values)
        super().__init__(config, [STDiTBlock(config) for _ in range(config.depth)])

    def construct(
        self,
        x: Tensor,
        timestep: Optional[Tensor],
        y: Optional[Tensor],
        mask: Optional[Tensor] = None,
        x_mask: Optional[Tensor] = None,
        text_states: Optional[tuple] = None,
        modulation: Optional[tuple] = None,
        modulation_of_zero: Optional[tuple] = None,
    ) -> Tensor:
        """The prediction for a batch of noisy latents.

        Args:
            x: noisy latents (B, C, T, H, W) of the size `input_size`.
            timestep: (B,); None if `modulation` is given.
            y: text states (R, 1, L, caption_channels); None if `text_states` are given.
            mask: (R, L), 1 for text tokens, 0 for padding; None: no padding.
            x_mask: (B, T), 0 for conditioning frames, whose timestep is 0; None: no conditioning frames. Attention
                along time has the given timestep in all frames.
            text_states: precomputed by the method of that name.
            modulation: precomputed by `modulations`.
            modulation_of_zero: likewise for timestep 0, which frames outside `x_mask` have.

        Returns:
            (R, out_channels, T, H, W) float32.

        Raises:
            ValueError: latents of another size.
        """
        return self.predict(x, timestep, y, mask, x_mask, text_states, modulation, modulation_of_zero)

    def prepare(
        self,
        x: Tensor,
        timestep: Optional[Tensor],
        y: Optional[Tensor],
        mask: Optional[Tensor] = None,
        x_mask: Optional[Tensor] = None,
        text_states: Optional[tuple] = None,
        modulation: Optional[tuple] = None,
        modulation_of_zero: Optional[tuple] = None,
    ) -> tuple:
        """The tokens (B, t, h w, D) before block 0, and what `run_blocks` and `head` need.

        Arguments are as of `construct`.
        """
        tokens, grid = self.embed(x)
        if modulation is None:
            modulation = self.modulations(timestep)
        time, of_time = modulation
        temporal = of_time.expand_dims(1).expand_dims(1)  # B 1 1 6D
        spatial, t0 = temporal, None
        if x_mask is not None:
            if modulation_of_zero is None:
                modulation_of_zero = self.modulations(ops.zeros_like(timestep))
            t0, of_zero = modulation_of_zero
            x_mask = x_mask != 0
            frames = x_mask.expand_dims(2).expand_dims(3)
            spatial = ops.where(frames, temporal, of_zero.expand_dims(1).expand_dims(1))  # B T 1 6D
        text_states, text_mask = self.embed_text(y, mask, text_states, tokens.shape[1] * tokens.shape[2])
        return tokens, (spatial, temporal, text_states, text_mask, (grid, time, x_mask, t0))

    def modulations(self, timestep: Tensor) -> tuple:
        """The embeddings of timesteps (n,), (n, D), and the modulations of all blocks, (n, 6 D)."""
        return self.modulations_of(self.t_embedder(timestep))

    def run_blocks(self, tokens: Tensor, first: int, end: int, inputs: tuple) -> Tensor:
        """The tokens (R, t, h w, D) after block `end` - 1, from those before block `first`: B rows for block 0."""
        spatial, temporal, text_states, text_mask, _ = inputs
        for i, block in enumerate(self.blocks_to_run[first:end]):
            positions = self.positions_in_time() if first + i == 0 else None
            spatial, temporal = repeat_rows(spatial, tokens.shape[0]), repeat_rows(temporal, tokens.shape[0])
            tokens = block(tokens, spatial, temporal, text_states[first + i], text_mask, positions)
        return tokens
