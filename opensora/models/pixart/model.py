"""PixArt and PixArtMS of Open-Sora v1.0 (hpcaitech, github.com/hpcaitech/Open-Sora, tag v1.0.0).

They are PixArt-alpha (Chen et al. 2023, arXiv:2310.00426) with attention over the tokens of all frames.
"""

from __future__ import annotations

from typing import Optional

from mindspore import Tensor, ops

from opensora.models.pixart.config import PixArtConfig, PixArtMSConfig
from opensora.models.stdit.blocks import PixArtBlock
from opensora.models.stdit.captioned import CaptionedTransformer
from opensora.models.stdit.embeddings import ScalarEmbedder


class PixArt(CaptionedTransformer):
    """Predicts noise and its variance from noisy latents, conditioned on the timestep and the text.

    Letters: B batch, C channels, T H W latent frames, height, width; L tokens of the text.
    """

    config_class: type[PixArtConfig] = PixArtConfig
    config: PixArtConfig

    def __init__(self, **values):
        config = self.config_class.from_dict(values)
        super().__init__(config, [PixArtBlock(config) for _ in range(config.depth)])
        self.has_positions_in_time = not config.no_temporal_pos_emb

    def construct(self, x: Tensor, timestep: Tensor, y: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        """The prediction for a batch of noisy latents.

        Args:
            x: noisy latents (B, C, T, H, W) of the size `input_size`.
            timestep: (B,).
            y: text states (B, 1, L, caption_channels).
            mask: (B, L), 1 for text tokens, 0 for padding; None: no padding.

        Returns:
            (B, out_channels, T, H, W) float32.

        Raises:
            ValueError: latents of another size.
        """
        return self.predict(x, self.t_embedder(timestep), y, mask)

    def predict(self, x: Tensor, time: Tensor, y: Tensor, mask: Optional[Tensor]) -> Tensor:
        """The prediction; `time` (B, D) is the embedding of the timestep, other arguments are as of `construct`."""
        tokens, grid = self.embed(x)
        if self.has_positions_in_time:
            tokens = tokens + self.positions_in_time()
        b, t, s, width = tokens.shape
        tokens = tokens.reshape(b, 1, t * s, width)
        text, text_mask = self.embed_text(y, mask, t * s)
        modulation = self.t_block(time).expand_dims(1).expand_dims(1)  # B 1 1 6D
        for block in self.blocks_to_run:
            tokens = block(tokens, modulation, text, text_mask)
        return self.prediction(self.final_layer(tokens, time, None, None), grid)


class PixArtMS(PixArt):
    """PixArt for images of several sizes: conditioned on height, width and aspect ratio, too.

    Latents may have any height and width that give as many patches as `input_size` does.
    """

    config_class = PixArtMSConfig

    def __init__(self, **values):
        super().__init__(**values)
        self.csize_embedder = ScalarEmbedder(self.width // 3)
        self.ar_embedder = ScalarEmbedder(self.width // 3)

    def construct(
        self, x: Tensor, timestep: Tensor, y: Tensor, mask: Optional[Tensor] = None, data_info: Optional[dict] = None
    ) -> Tensor:
        """As `PixArt.construct`.

        Args:
            data_info: `hw` (B, 2), height and width in pixels, and `ar` (B, 1), height / width.

        Raises:
            ValueError: latents with another number of patches, or no `data_info`.
        """
        if data_info is None:
            # Graph mode compiles only Python's own exception classes.
            raise ValueError("PixArtMS needs data_info, the height, width and aspect ratio of every sample")
        hw, ar = data_info["hw"], data_info["ar"]
        size = ops.cat(
            (self.csize_embedder(hw[:, 0]), self.csize_embedder(hw[:, 1]), self.ar_embedder(ar.reshape(-1))), 1
        )
        return self.predict(x, self.t_embedder(timestep) + size, y, mask)

    def check_size(self, size: tuple) -> None:
        (t, h, w), (pt, ph, pw), (frames, rows, columns) = size, self.x_embedder.patch_size, self.grid
        if h % ph or w % pw or t != frames * pt or (h // ph) * (w // pw) != rows * columns:
            raise ValueError(
                f"latents of {size} frames, rows and columns do not have as many patches as {self.input_size}"
            )
