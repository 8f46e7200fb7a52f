"""STDiT, the diffusion transformer of Open-Sora v1.0 (hpcaitech, github.com/hpcaitech/Open-Sora, tag v1.0.0).

It is PixArt-alpha (Chen et al. 2023, arXiv:2310.00426) with attention along time in every block.
"""

from __future__ import annotations

from typing import Optional

from mindspore import Tensor, ops

from opensora.models.stdit.blocks import GATE_SPACE, CaptionedBlock, SelfAttention
from opensora.models.stdit.captioned import CaptionedTransformer
from opensora.models.stdit.config import STDiTConfig
from opensora.ops.norms import gated_residual


class STDiTBlock(CaptionedBlock):
    """Spatial, temporal and cross-attention, MLP.

    Temporal attention has no norm and no modulation of its input, and the gate of spatial attention.

    x (B, T, S, C), modulation (B, F, 1, 6 C) and (B, 1, 1, 6 C), both float32, text (B, L, C) -> (B, T, S, C). F is T
    if there are conditioning frames, whose modulation is that of timestep 0, else 1. The second modulation is that of
    the timestep, for all frames. `positions` (T, 1, C) are added to the input of temporal attention.
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
        text: Tensor,
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

    def __init__(self, **values):
        config = STDiTConfig.from_dict(values)
        super().__init__(config, [STDiTBlock(config) for _ in range(config.depth)])

    def construct(
        self, x: Tensor, timestep: Tensor, y: Tensor, mask: Optional[Tensor] = None, x_mask: Optional[Tensor] = None
    ) -> Tensor:
        """The prediction for a batch of noisy latents.

        Args:
            x: noisy latents (B, C, T, H, W) of the size `input_size`.
            timestep: (B,).
            y: text states (B, 1, L, caption_channels).
            mask: (B, L), 1 for text tokens, 0 for padding; None: no padding.
            x_mask: (B, T), 0 for conditioning frames, whose timestep is 0; None: no conditioning frames. Attention
                along time has the given timestep in all frames.

        Returns:
            (B, out_channels, T, H, W) float32.

        Raises:
            ValueError: latents of another size.
        """
        tokens, grid = self.embed(x)
        time = self.t_embedder(timestep)
        temporal = self.t_block(time).expand_dims(1).expand_dims(1)  # B 1 1 6D
        modulation, t0 = temporal, None
        if x_mask is not None:
            x_mask = x_mask != 0
            t0 = self.t_embedder(ops.zeros_like(timestep))
            of_zero = self.t_block(t0).expand_dims(1).expand_dims(1)
            modulation = ops.where(x_mask.expand_dims(2).expand_dims(3), temporal, of_zero)  # B T 1 6D
        text, text_mask = self.embed_text(y, mask, tokens.shape[1] * tokens.shape[2])
        for i, block in enumerate(self.blocks_to_run):
            positions = self.positions_in_time() if i == 0 else None
            tokens = block(tokens, modulation, temporal, text, text_mask, positions)
        return self.prediction(self.final_layer(tokens, time, x_mask, t0), grid)
