"""The diffusion transformer of Open-Sora-Plan v1.2 (github.com/PKU-YuanGroup/Open-Sora-Plan, tag v1.2.0)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Optional

import mindspore as ms
from mindspore import Tensor

from opensora.errors import UserError
from opensora.models.common.images import join_images, split_images
from opensora.models.dit.config import Transformer2DConfig
from opensora.models.dit.embeddings import frame_positions, time_positions
from opensora.models.dit.transformer import RotaryTransformer

SCALE_HEIGHT, SCALE_WIDTH, SCALE_FRAMES = 30, 40, 16  # the latent size at which the default scales are 1


@dataclass(frozen=True)
class OpenSoraV1_2Config(Transformer2DConfig):
    """Open-Sora-Plan v1.2.

    Attributes:
        sample_size_t: latent frames in training.
        use_rope: rotary position embedding, as in all published weights; otherwise sines and cosines of the positions
            are added to the tokens.
        interpolation_scale_t, interpolation_scale_h, interpolation_scale_w: what positions are divided by; by default
            they follow from the sample size.
        use_stable_fp32: no effect; norms and the residual stream are float32.
    """

    in_channels: int = 4
    sample_size_t: Optional[int] = None
    use_rope: bool = False
    interpolation_scale_t: Optional[float] = None
    interpolation_scale_h: Optional[float] = None
    interpolation_scale_w: Optional[float] = None
    downsampler: Optional[str] = None
    use_additional_conditions: Optional[bool] = None
    use_stable_fp32: bool = False

    release: ClassVar[str] = "Open-Sora-Plan v1.2"
    fixed: ClassVar[dict] = {**Transformer2DConfig.fixed, "downsampler": None}

    def __post_init__(self):
        super().__post_init__()
        if self.use_additional_conditions:
            raise UserError(f"use_additional_conditions is not supported; no weights of {self.release} have them")
        if not self.use_rope:
            self.training_size()
            self.training_frames()
        self.scales()

    def training_frames(self) -> int:
        """Latent frames in training.

        Raises:
            UserError: the configuration has no such number.
        """
        if self.sample_size_t is None:
            raise UserError("sample_size_t is missing, the number of latent frames, which the positions depend on")
        return self.sample_size_t

    def scales(self) -> tuple[float, float, float]:
        """What positions are divided by, along time, height and width."""
        t, h, w = self.interpolation_scale_t, self.interpolation_scale_h, self.interpolation_scale_w
        if t is None:
            frames = self.training_frames()
            t = (frames - 1) // SCALE_FRAMES + 1 if frames % 2 else frames / SCALE_FRAMES
        h = self.training_size()[0] / SCALE_HEIGHT if h is None else h
        w = self.training_size()[1] / SCALE_WIDTH if w is None else w
        return t, h, w


class OpenSoraT2V(RotaryTransformer):
    """Predicts noise from noisy latents, conditioned on the timestep and the text.

    All blocks have dense self-attention over the tokens of all frames.
    """

    config_class: type[OpenSoraV1_2Config] = OpenSoraV1_2Config
    config: OpenSoraV1_2Config
    # Position embeddings, which depend on the size of the latents.
    ignored_prefixes = ("pos_embed.pos_embed", "pos_embed.temp_pos_embed")

    def __init__(self, **values):
        super().__init__(**values)
        config, self.added_scales = self.config, self.config.scales()
        self.scales = self.added_scales if config.use_rope else (math.inf, math.inf, math.inf)
        if not config.use_rope:
            p, (h, w) = config.patch_size, config.training_size()
            self.training_size = h // p, w // p  # in tokens
            self.training_frames = config.training_frames()

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
    ) -> Tensor:
        """The prediction for a batch of noisy latents; see `VideoTransformer.construct`.

        Args:
            use_image_num: N, the number of images in joint training. The latents are (B, C, T + N, H, W) then, the
                text (B, 1 + N, L, caption_channels), and the masks have these sizes, too (`split_images`).
        """
        inputs = hidden_states, timestep, encoder_hidden_states, attention_mask, encoder_attention_mask
        if use_image_num == 0:
            return self.predict(*inputs, text_states, modulation, condition)
        videos, images = split_images(use_image_num, *inputs)
        return join_images(self.predict(*videos), self.predict(*images))

    def embed(self, hidden_states: Tensor, condition: Optional[Tensor] = None) -> Tensor:
        """(B, C, T, H, W) -> tokens (B, S, D); float32 if positions are added."""
        tokens = self.pos_embed(hidden_states)
        if self.config.use_rope:
            return tokens
        b, _, dim = tokens.shape
        t, p = hidden_states.shape[2], self.config.patch_size
        grid = hidden_states.shape[3] // p, hidden_states.shape[4] // p
        scale_t, scale_h, scale_w = self.added_scales
        x = tokens.reshape(b, t, -1, dim).astype(ms.float32)
        x = x + frame_positions(grid, self.training_size, (scale_h, scale_w), dim)
        return (x + time_positions(t, self.training_frames, scale_t, dim)).reshape(b, -1, dim)


# Published configurations by name, as keys of `OpenSoraV1_2Config`.
PRESETS = {
    "OpenSoraT2V-ROPE-L/122": {
        "num_layers": 32,
        "num_attention_heads": 24,
        "attention_head_dim": 96,
        "in_channels": 4,
        "out_channels": 4,
        "caption_channels": 4096,
        "cross_attention_dim": 2304,
        "use_rope": True,
        "interpolation_scale_t": 1.0,
        "interpolation_scale_h": 1.0,
        "interpolation_scale_w": 1.0,
    }
}
