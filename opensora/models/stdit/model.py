"""STDiT2, the diffusion transformer of Open-Sora v1.1 (hpcaitech, github.com/hpcaitech/Open-Sora, tag v1.1.0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Optional, Union

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.common.initializer import Normal

from opensora.checkpoint.lazy_tensor import LazyTensor
from opensora.errors import UserError
from opensora.models.common.rows import repeat_rows
from opensora.models.stdit.base import HpcaitechTransformer
from opensora.models.stdit.blocks import FinalLayer, STDiT2Block
from opensora.models.stdit.config import STDiT2Config
from opensora.models.stdit.embeddings import (
    SMALL,
    CaptionEmbedder,
    FramePositions,
    Modulation,
    PatchEmbed3D,
    ScalarEmbedder,
)
from opensora.models.streaming import BlockStream
from opensora.ops.rope import interleaved_cos, interleaved_sin, inverse_frequencies

ROPE = "rope.freqs"


class STDiT2(HpcaitechTransformer):
    """Predicts noise and its variance from noisy latents, conditioned on timestep, text, size, length and frame rate.

    Letters: B batch, C channels, T H W latent frames, height, width; t h w tokens; L tokens of the text.
    """

    config_class = STDiT2Config
    config: STDiT2Config
    conditions = (
        *("y", "mask", "x_mask", "num_frames", "height", "width", "ar", "fps"),
        *("text_states", "modulation", "modulation_of_zero"),
    )
    # The RoPE frequencies are computed, because 16-bit files have them rounded.
    ignored_prefixes = (*HpcaitechTransformer.ignored_prefixes, ROPE)

    def __init__(self, **values):
        super().__init__()
        self.config = config = STDiT2Config.from_dict(values)
        width, patch = config.hidden_size, tuple(config.patch_size)
        # Graph mode reads no properties.
        self.head_dim, self.depth = config.head_dim, config.depth
        self.x_embedder = PatchEmbed3D(patch, config.in_channels, width)
        self.positions = FramePositions(width, config.input_sq_size)
        self.t_embedder = ScalarEmbedder(width, Normal(SMALL))
        self.csize_embedder = ScalarEmbedder(width // 3)
        self.ar_embedder = ScalarEmbedder(width // 3)
        self.fl_embedder = ScalarEmbedder(width)
        self.fps_embedder = ScalarEmbedder(width)
        self.t_block = Modulation(width, 6)
        self.t_block_temp = Modulation(width, 3)
        self.y_embedder = CaptionEmbedder(config.caption_channels, width, config.model_max_length)
        self.blocks = nn.CellList([STDiT2Block(config) for _ in range(config.depth)])
        self.blocks_to_run: Union[tuple, BlockStream] = tuple(self.blocks)
        self.final_layer = FinalLayer(width, int(np.prod(patch)) * config.out_channels)
        self.freeze(config.freeze)

    def construct(
        self,
        x: Tensor,
        timestep: Optional[Tensor],
        y: Optional[Tensor],
        mask: Optional[Tensor] = None,
        x_mask: Optional[Tensor] = None,
        num_frames: Optional[Tensor] = None,
        height: Optional[Tensor] = None,
        width: Optional[Tensor] = None,
        ar: Optional[Tensor] = None,
        fps: Optional[Tensor] = None,
        text_states: Optional[tuple] = None,
        modulation: Optional[tuple] = None,
        modulation_of_zero: Optional[tuple] = None,
    ) -> Tensor:
        """The prediction for a batch of noisy latents.

        Everything before the first cross-attention is computed once for all texts of a video.

        Args:
            x: noisy latents (B, C, T, H, W).
            timestep: (B,); None if `modulation` is given.
            y: text states (R, 1, L, caption_channels); None if `text_states` are given.
            mask: (R, L), 1 for text tokens, 0 for padding; None: no padding.
            x_mask: (B, T) bool, False for conditioning frames, whose timestep is 0; None: no conditioning frames.
            num_frames: (B,), frames of the video.
            height: (B,), in pixels.
            width: (B,), in pixels.
            ar: (B,), height / width.
            fps: (B,).
            text_states: precomputed by the method of that name.
            modulation: precomputed by `modulations`.
            modulation_of_zero: likewise for timestep 0, which frames outside `x_mask` have.

        All arguments after y may have fewer rows, of which B or R must be a multiple: they are repeated.

        Returns:
            (R, out_channels, T, H, W) float32.

        Raises:
            ValueError: num_frames, height, width, ar or fps is missing.
        """
        tokens, inputs = self.prepare(
            x,
            timestep,
            y,
            mask,
            x_mask,
            num_frames,
            height,
            width,
            ar,
            fps,
            text_states,
            modulation,
            modulation_of_zero,
        )
        return self.head(self.run_blocks(tokens, 0, self.depth, inputs), inputs)

    def prepare(
        self,
        x: Tensor,
        timestep: Optional[Tensor],
        y: Optional[Tensor],
        mask: Optional[Tensor] = None,
        x_mask: Optional[Tensor] = None,
        num_frames: Optional[Tensor] = None,
        height: Optional[Tensor] = None,
        width: Optional[Tensor] = None,
        ar: Optional[Tensor] = None,
        fps: Optional[Tensor] = None,
        text_states: Optional[tuple] = None,
        modulation: Optional[tuple] = None,
        modulation_of_zero: Optional[tuple] = None,
    ) -> tuple:
        """The tokens (B, t, h w, D) before block 0, and what `run_blocks` and `head` need; arguments as of `construct`.

        The tokens are float32: the residual stream adds up the outputs of many blocks.
        """
        if num_frames is None or height is None or width is None or ar is None or fps is None:
            # Graph mode compiles only Python's own exception classes.
            raise ValueError("STDiT2 needs num_frames, height, width, ar and fps of every sample")
        batch = x.shape[0]
        tokens = self.x_embedder(x)  # B t h w C
        _, t, h, w, _ = tokens.shape
        tokens = tokens.reshape(batch, t, h * w, -1).astype(ms.float32) + self.positions(h, w, height, width)

        if modulation is None:
            modulation = self.modulations(timestep, num_frames, height, width, ar, fps)
        time, _, spatial, temporal = modulation
        spatial, temporal = repeat_rows(spatial, batch).expand_dims(1), repeat_rows(temporal, batch).expand_dims(1)
        t0 = None
        if x_mask is not None:
            if modulation_of_zero is None:
                modulation_of_zero = self.modulations(ops.zeros_like(timestep), num_frames, height, width, ar, fps)
            _, t0, spatial0, temporal0 = modulation_of_zero
            x_mask = repeat_rows(x_mask, batch).astype(ms.bool_)
            frame = x_mask.expand_dims(2)  # B T 1
            spatial = ops.where(frame, spatial, repeat_rows(spatial0, batch).expand_dims(1))  # B T 6C
            temporal = ops.where(frame, temporal, repeat_rows(temporal0, batch).expand_dims(1))

        text_states, text_mask = self.embed_text(y, mask, text_states, t * h * w)
        sizes = (t, h, w), x.shape[2:]
        return tokens, (
            sizes,
            (spatial.expand_dims(2), temporal.expand_dims(2)),
            text_states,
            text_mask,
            time,
            x_mask,
            t0,
        )

    def run_blocks(self, tokens: Tensor, first: int, end: int, inputs: tuple) -> Tensor:
        """The tokens (R, t, h w, D) after block `end` - 1, from those before block `first`: B rows for block 0."""
        ((t, _, _), _), (spatial, temporal), text_states, text_mask, _, _, _ = inputs
        cos, sin = interleaved_cos(t, self.head_dim), interleaved_sin(t, self.head_dim)
        for i, block in enumerate(self.blocks_to_run[first:end]):
            spatial, temporal = repeat_rows(spatial, tokens.shape[0]), repeat_rows(temporal, tokens.shape[0])
            tokens = block(tokens, spatial, temporal, text_states[first + i], text_mask, cos, sin)
        return tokens

    def head(self, tokens: Tensor, inputs: tuple) -> Tensor:
        """The prediction (R, out_channels, T, H, W) float32 from the tokens (R, t, h w, D) after the last block."""
        ((t, h, w), (frames, height, width)), _, _, _, time, x_mask, t0 = inputs
        patches = self.final_layer(tokens, time, x_mask, t0)
        return self.unpatchify(patches, t, h, w)[:, :, :frames, :height, :width].astype(ms.float32)

    def modulations(
        self, timestep: Tensor, num_frames: Tensor, height: Tensor, width: Tensor, ar: Tensor, fps: Tensor
    ) -> tuple:
        """What the timestep (n,), the size, the length and the frame rate (n,) contribute to all blocks.

        Returns:
            Embeddings of the timestep (n, D), of timestep and size (n, D), the modulations of spatial attention and
            MLP (n, 6 D) and of temporal attention (n, 3 D).
        """
        rows = timestep.shape[0]
        size = ops.cat((self.csize_embedder(height), self.csize_embedder(width), self.ar_embedder(ar)), 1)
        length = self.fl_embedder(num_frames) + self.fps_embedder(fps)
        time = self.t_embedder(timestep)
        sized = time + repeat_rows(size, rows)
        return time, sized, self.t_block(sized), self.t_block_temp(time + repeat_rows(length, rows))

    def torch_buffers(self) -> dict[str, np.ndarray]:
        return {ROPE: inverse_frequencies(self.config.head_dim).astype(np.float32)}

    def canonical_names(self, state: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """Also checks that the file's RoPE frequencies are those of the configured heads."""
        heads = self.config.num_heads
        if ROPE in state and tuple(state[ROPE].shape) != (self.config.head_dim // 2,):
            raise UserError(
                f"{ROPE} has {state[ROPE].shape[0]} frequencies, which do not match {heads} heads "
                f"(num_heads) of {self.config.head_dim} channels"
            )
        return super().canonical_names(state)
