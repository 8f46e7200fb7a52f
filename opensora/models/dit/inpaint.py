"""The diffusion transformer conditioned on known frames (image to video and inpainting, Open-Sora-Plan v1.3)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional, Union

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from opensora.checkpoint.files import find_weights, open_state, read_config
from opensora.errors import UserError
from opensora.models.common.layers import Linear
from opensora.models.dit.config import OpenSoraInpaintConfig
from opensora.models.dit.embeddings import PatchEmbed2D
from opensora.models.dit.model import OpenSoraT2V_v1_3
from opensora.utils.logs import logger

CONDITIONING_LAYERS = ("pos_embed_masked_hidden_states.", "pos_embed_mask.")


class OpenSoraInpaint_v1_3(OpenSoraT2V_v1_3):
    """The text-to-video transformer, also conditioned on the latents of known frames and on a mask of these frames.

    The channels of `hidden_states` (B, 2 C + M, T, H, W) are the C noisy latents, the C latents of the video whose
    unknown frames are black, and the M = `vae_scale_factor_t` channels of the mask (`opensora.datasets.masks`). Each
    of the three has its own patch embedding, and the tokens are added. The conditioning tokens pass a zero-initialized
    projection.
    """

    config_class: type[OpenSoraInpaintConfig] = OpenSoraInpaintConfig
    config: OpenSoraInpaintConfig

    def __init__(self, **values):
        super().__init__(**values)
        config = self.config
        self.pos_embed_masked_hidden_states = self._conditioning_embed(config.in_channels)
        self.pos_embed_mask = self._conditioning_embed(config.vae_scale_factor_t)
        self.condition_channels = (config.in_channels, config.vae_scale_factor_t)

    def _conditioning_embed(self, in_channels: int) -> nn.SequentialCell:
        width = self.config.hidden_size
        projection = Linear(width, width, bias=False)
        projection.weight = Parameter(initializer("zeros", (width, width), ms.float32))
        return nn.SequentialCell(PatchEmbed2D(self.config.patch_size, in_channels, width), projection)

    def embed(self, hidden_states: Tensor, condition: Optional[Tensor] = None) -> Tensor:
        """(B, 2 C + M, T, H, W) -> tokens (B, S, D); with `condition`, hidden_states are the noisy latents alone."""
        if condition is None:
            noisy = self.config.in_channels
            hidden_states, condition = ops.split(hidden_states, (noisy, sum(self.condition_channels)), 1)
            condition = self.condition_states(condition)
        return self.pos_embed(hidden_states) + condition

    def condition_states(self, condition: Tensor) -> Tensor:
        """Tokens (B, S, D) of the known latents and the mask (B, C + M, T, H, W), the same for all sampling steps."""
        masked, mask = ops.split(condition, self.condition_channels, 1)
        return self.pos_embed_masked_hidden_states(masked) + self.pos_embed_mask(mask)

    @classmethod
    def init_from(
        cls, path: Union[str, Path], dtype=ms.float32, config: Optional[Mapping[str, Any]] = None, use_ema: bool = True
    ) -> OpenSoraInpaint_v1_3:
        """A model to train further, from inpainting weights or from text-to-video weights.

        Text-to-video weights lack the conditioning layers. These start without effect: their projections are zero. The
        patch embedding of the known latents is copied from that of the noisy latents; the mask's is random, because no
        gradient would ever reach it if it were zero too. Arguments and errors are those of `from_pretrained`.
        """
        source = find_weights(path)
        state = open_state(source, use_ema)
        if any(name.startswith(CONDITIONING_LAYERS) for name in state):
            return cls.from_pretrained(path, dtype, config, use_ema)
        model = cls(**(read_config(path) if config is None else config))
        model.dtype = dtype
        new = {
            name: parameter.asnumpy()
            for name, parameter in model.parameters_and_names()
            if name.startswith(CONDITIONING_LAYERS)
        }
        copied = {
            name.replace("pos_embed.", "pos_embed_masked_hidden_states.0."): tensor
            for name, tensor in state.items()
            if name.startswith("pos_embed.")
        }
        try:
            model.load_torch_state({**new, **copied, **state})
        except ValueError as error:
            raise UserError(f"{source}: {error}") from error
        logger.info(
            f"{source}: text-to-video weights; the conditioning layers are new and have no effect before training: "
            f"{', '.join(name + '*' for name in CONDITIONING_LAYERS)}"
        )
        return model
