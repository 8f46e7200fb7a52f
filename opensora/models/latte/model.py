"""LatteT2V, the diffusion transformer of Open-Sora-Plan v1.0 and v1.1 (github.com/PKU-YuanGroup/Open-Sora-Plan).

Spatial and temporal blocks alternate as in Latte (Ma et al. 2024, arXiv:2401.03048, section 3.2, variant 1).
"""

from __future__ import annotations

from typing import Optional, Union

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from opensora.models.common.images import join_images, split_images
from opensora.models.common.rows import repeat_rows
from opensora.models.dit.embeddings import frame_positions, time_positions
from opensora.models.dit.transformer import VideoTransformer
from opensora.models.latte.blocks import SpatialBlock, TemporalBlock
from opensora.models.latte.config import LatteConfig
from opensora.models.streaming import BlockStream
from opensora.ops.attention import prepare_attention_mask

NULL_TEXT, NULL_TEXT_LENGTH = "caption_projection.y_embedding", 120
TEMPORAL = "temporal_"  # before the name of the list of spatial blocks: that of the temporal blocks


class LatteT2V(VideoTransformer):
    """Predicts noise and its variance from noisy latents, conditioned on the timestep and the text.

    Blocks with even index in `ordered_blocks` are spatial, the others temporal. An image has no temporal blocks.
    """

    config_class: type[LatteConfig] = LatteConfig
    config: LatteConfig
    blocks_with_text = slice(None, None, 2)
    # Position embeddings, which depend on the size of the latents, and a buffer without effect.
    ignored_prefixes = ("pos_embed.pos_embed", "temp_pos_embed", NULL_TEXT)

    def __init__(self, **values):
        super().__init__(**values)
        config = self.config
        self.temporal_transformer_blocks = nn.CellList([TemporalBlock(config) for _ in range(config.num_layers)])
        self.blocks_to_run: Union[tuple, BlockStream] = tuple(self.ordered_blocks())
        self.block_count = 2 * config.num_layers
        # Graph mode reads no properties. Both axes have the training size of the first one.
        self.training_size = (config.training_size()[0] // config.patch_size,) * 2
        self.spatial_scales, self.temporal_scale = (config.spatial_scale,) * 2, config.temporal_scale

    def make_block(self, index: int) -> SpatialBlock:
        return SpatialBlock(self.config)

    def construct(
        self,
        hidden_states: Tensor,
        timestep: Optional[Tensor],
        encoder_hidden_states: Optional[Tensor],
        attention_mask: Optional[Tensor] = None,
        encoder_attention_mask: Optional[Tensor] = None,
        text_states: Optional[tuple] = None,
        modulation: Optional[tuple] = None,
        condition: Optional[Tensor] = None,
        use_image_num: int = 0,
        enable_temporal_attentions: bool = True,
    ) -> Tensor:
        """The prediction for a batch of noisy latents; see `VideoTransformer.construct`.

        Args:
            attention_mask: has an effect on spatial attention alone.
            use_image_num: N, the number of images in joint training. The latents are (B, C, T + N, H, W) then, the
                text (B, 1 + N, L, caption_channels), and the masks have these sizes, too (`split_images`).
            enable_temporal_attentions: False is for images, T = 1, which have no temporal blocks in any case.

        Raises:
            ValueError: T is neither `video_length` nor 1, or not 1 without temporal attention.
        """
        if not enable_temporal_attentions and hidden_states.shape[2] > 1:
            # Graph mode compiles only Python's own exception classes.
            raise ValueError("enable_temporal_attentions False is for images, latents of one frame")
        inputs = hidden_states, timestep, encoder_hidden_states, attention_mask, encoder_attention_mask
        if use_image_num == 0:
            return self.predict(*inputs, text_states, modulation, condition)
        videos, images = split_images(use_image_num, *inputs)
        return join_images(self.predict(*videos), self.predict(*images))

    def run_blocks(self, x: Tensor, first: int, end: int, inputs: tuple) -> Tensor:
        """The tokens (R, s, D) after block `end` - 1, from those before block `first`: (B, s, D) for block 0."""
        (t, h, w), dtype, (modulation, _), attention_mask, text_states, text_mask = inputs
        mask = None
        if attention_mask is not None:
            mask = prepare_attention_mask(self.patch_mask(attention_mask).reshape(-1, h * w), h * w, dtype)  # B T rows
        modulation = repeat_rows(modulation, x.shape[0])
        step = 1 if t > 1 else 2
        start = first + first % step
        for i, block in enumerate(self.blocks_to_run[start:end:step]):
            index = start + i * step
            if index % 2 == 0:
                mask = None if mask is None else repeat_rows(mask, x.shape[0] * t)
                x = block(x, modulation, t, h * w, mask, text_states[index // 2], text_mask)
                modulation = repeat_rows(modulation, x.shape[0])
            else:
                if index == 1:
                    positions = ops.tile(time_positions(t, t, self.temporal_scale, x.shape[2]), (1, h * w, 1))
                    x = x + self.sequence.split(positions.reshape(1, t * h * w, -1))
                x = block(x, modulation, t, h * w)
        return x

    def embed(self, hidden_states: Tensor, condition: Optional[Tensor] = None) -> Tensor:
        """(B, C, T, H, W) -> tokens (B, S, D) float32, with the positions in their frame."""
        t, p, length = hidden_states.shape[2], self.config.patch_size, self.config.video_length
        if t not in (1, length):
            raise ValueError(f"{t} latent frames, but the model has positions for video_length {length}, or for 1")
        x = self.pos_embed(hidden_states).astype(ms.float32)
        b, _, dim = x.shape
        grid = hidden_states.shape[3] // p, hidden_states.shape[4] // p
        positions = frame_positions(grid, self.training_size, self.spatial_scales, dim)
        return (x.reshape(b, t, -1, dim) + positions).reshape(b, -1, dim)

    def ordered_blocks(self) -> list[nn.Cell]:
        pairs = zip(self.transformer_blocks, self.temporal_transformer_blocks)
        return [block for pair in pairs for block in pair]

    def block_of(self, name: str) -> Optional[str]:
        is_temporal = name.startswith(TEMPORAL)
        index = super().block_of(name.removeprefix(TEMPORAL))
        return None if index is None else str(2 * int(index) + is_temporal)

    def torch_buffers(self) -> dict[str, np.ndarray]:
        return {NULL_TEXT: np.zeros((NULL_TEXT_LENGTH, self.config.caption_channels), np.float32)}
