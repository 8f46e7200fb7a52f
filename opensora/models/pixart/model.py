"""PixArt and PixArtMS of Open-Sora v1.0 (hpcaitech, github.com/hpcaitech/Open-Sora, tag v1.0.0).

They are PixArt-alpha (Chen et al. 2023, arXiv:2310.00426) with attention over the tokens of all frames.
"""

from __future__ import annotations

from typing import Optional

from mindspore import Tensor, ops

from opensora.models.common.rows import repeat_rows
from opensora.models.pixart.config import PixArtConfig, PixArtMSConfig
from opensora.models.stdit.blocks import PixArtBlock
from opensora.models.stdit.captioned import CaptionedTransformer
from opensora.models.stdit.embeddings import ScalarEmbedder


class PixArtTransformer(CaptionedTransformer):
    """What PixArt and PixArtMS have in common."""

    config_class: type[PixArtConfig] = PixArtConfig
    config: PixArtConfig

    def __init__(self, **values):
        config = self.config_class.from_dict(values)
        super().__init__(config, [PixArtBlock(config) for _ in range(config.depth)])
        self.has_positions_in_time = not config.no_temporal_pos_emb

    def prepare_modulated(
        self, x: Tensor, y: Optional[Tensor], mask: Optional[Tensor], text_states: Optional[tuple], modulation: tuple
    ) -> tuple:
        """`prepare` with the modulation of the timestep."""
        tokens, grid = self.embed(x)
        if self.has_positions_in_time:
            tokens = tokens + self.positions_in_time()
        b, t, s, width = tokens.shape
        text_states, text_mask = self.embed_text(y, mask, text_states, t * s)
        time, of_time = modulation
        shared = of_time.expand_dims(1).expand_dims(1)  # B 1 1 6D
        return tokens.reshape(b, 1, t * s, width), (shared, text_states, text_mask, (grid, time, None, None))

    def run_blocks(self, tokens: Tensor, first: int, end: int, inputs: tuple) -> Tensor:
        """The tokens (R, 1, t h w, D) after block `end` - 1, from those before block `first`: B rows for block 0."""
        modulation, text_states, text_mask, _ = inputs
        for i, block in enumerate(self.blocks_to_run[first:end]):
            modulation = repeat_rows(modulation, tokens.shape[0])
            tokens = block(tokens, modulation, text_states[first + i], text_mask)
        return tokens


class PixArt(PixArtTransformer):
    """Predicts noise and its variance from noisy latents, conditioned on the timestep and the text.

    Letters: B batch, C channels, T H W latent frames, height, width; L tokens of the text.
    """

    conditions = ("y", "mask", "text_states", "modulation")

    def construct(
        self,
        x: Tensor,
        timestep: Optional[Tensor],
        y: Optional[Tensor],
        mask: Optional[Tensor] = None,
        text_states: Optional[tuple] = None,
        modulation: Optional[tuple] = None,
    ) -> Tensor:
        """The prediction for a batch of noisy latents.

        Args:
            x: noisy latents (B, C, T, H, W) of the size `input_size`.
            timestep: (B,); None if `modulation` is given.
            y: text states (R, 1, L, caption_channels); None if `text_states` are given.
            mask: (R, L), 1 for text tokens, 0 for padding; None: no padding.
            text_states: precomputed by the method of that name.
            modulation: precomputed by `modulations`.

        Returns:
            (R, out_channels, T, H, W) float32.

        Raises:
            ValueError: latents of another size.
        """
        return self.predict(x, timestep, y, mask, text_states, modulation)

    def prepare(
        self,
        x: Tensor,
        timestep: Optional[Tensor],
        y: Optional[Tensor],
        mask: Optional[Tensor] = None,
        text_states: Optional[tuple] = None,
        modulation: Optional[tuple] = None,
    ) -> tuple:
        """The tokens (B, 1, t h w, D) before block 0, and what `run_blocks` and `head` need.

        Arguments are as of `construct`.
        """
        if modulation is None:
            modulation = self.modulations(timestep)
        return self.prepare_modulated(x, y, mask, text_states, modulation)

    def modulations(self, timestep: Tensor) -> tuple:
        """The embeddings of timesteps (n,), (n, D), and the modulations of all blocks, (n, 6 D)."""
        return self.modulations_of(self.t_embedder(timestep))


class PixArtMS(PixArtTransformer):
    """PixArt for images of several sizes: conditioned on height, width and aspect ratio, too.

    Latents may have any height and width that give as many patches as `input_size` does.
    """

    config_class = PixArtMSConfig
    conditions = ("y", "mask", "data_info", "height", "width", "ar", "text_states", "modulation")

    def __init__(self, **values):
        super().__init__(**values)
        self.csize_embedder = ScalarEmbedder(self.width // 3)
        self.ar_embedder = ScalarEmbedder(self.width // 3)

    def construct(
        self,
        x: Tensor,
        timestep: Optional[Tensor],
        y: Optional[Tensor],
        mask: Optional[Tensor] = None,
        data_info: Optional[dict] = None,
        height: Optional[Tensor] = None,
        width: Optional[Tensor] = None,
        ar: Optional[Tensor] = None,
        text_states: Optional[tuple] = None,
        modulation: Optional[tuple] = None,
    ) -> Tensor:
        """As `PixArt.construct`.

        Args:
            data_info: the published form of the following: `hw` (B, 2) and `ar` (B, 1).
            height: (B,), in pixels.
            width: (B,), in pixels.
            ar: (B,), height / width.

        Raises:
            ValueError: latents with another number of patches, or height, width or ar is missing.
        """
        return self.predict(x, timestep, y, mask, data_info, height, width, ar, text_states, modulation)

    def prepare(
        self,
        x: Tensor,
        timestep: Optional[Tensor],
        y: Optional[Tensor],
        mask: Optional[Tensor] = None,
        data_info: Optional[dict] = None,
        height: Optional[Tensor] = None,
        width: Optional[Tensor] = None,
        ar: Optional[Tensor] = None,
        text_states: Optional[tuple] = None,
        modulation: Optional[tuple] = None,
    ) -> tuple:
        """As `PixArt.prepare`."""
        if data_info is not None:
            height, width, ar = data_info["hw"][:, 0], data_info["hw"][:, 1], data_info["ar"].reshape(-1)
        if modulation is None:
            if height is None or width is None or ar is None:
                # Graph mode compiles only Python's own exception classes.
                raise ValueError("PixArtMS needs data_info, the height, width and aspect ratio of every sample")
            modulation = self.modulations(timestep, height, width, ar)
        return self.prepare_modulated(x, y, mask, text_states, modulation)

    def modulations(self, timestep: Tensor, height: Tensor, width: Tensor, ar: Tensor) -> tuple:
        """As `PixArt.modulations`, with what the size of the samples, (B,) each, adds; n is a multiple of B."""
        size = ops.cat((self.csize_embedder(height), self.csize_embedder(width), self.ar_embedder(ar)), 1)
        return self.modulations_of(self.t_embedder(timestep) + repeat_rows(size, timestep.shape[0]))

    def check_size(self, size: tuple) -> None:
        (t, h, w), (pt, ph, pw), (frames, rows, columns) = size, self.x_embedder.patch_size, self.grid
        if h % ph or w % pw or t != frames * pt or (h // ph) * (w // pw) != rows * columns:
            raise ValueError(
                f"latents of {size} frames, rows and columns do not have as many patches as {self.input_size}"
            )
