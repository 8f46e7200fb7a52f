"""The diffusion transformer that knows parts of its video (Open-Sora-Plan v1.3: image to video and the like)."""

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

CONDITION_PARTS = ("pos_embed_masked_hidden_states.", "pos_embed_mask.")


class OpenSoraInpaint_v1_3(OpenSoraT2V_v1_3):
    """The text-to-video transformer with a condition: latents of known frames, and a mask that tells which they are.

    `hidden_states` (B, 2 C + M, T, H, W) holds along its channels the C noisy latents, the C latents of the video whose
    unknown frames are black, and the M = `vae_scale_factor_t` channels of the mask (`opensora.datasets.masks`). All
    three become tokens of their own, which are added; those of the condition pass a projection that starts at zero.
    """

    config_class = OpenSoraInpaintConfig

    def __init__(self, **config):
        super().__init__(**config)
        config = self.config
        self.pos_embed_masked_hidden_states = self._condition_embed(config.in_channels)
        self.pos_embed_mask = self._condition_embed(config.vae_scale_factor_t)
        self.input_channels = (config.in_channels, config.in_channels, config.vae_scale_factor_t)

    def _condition_embed(self, in_channels: int) -> nn.SequentialCell:
        width = self.config.hidden_size
        projection = Linear(width, width, bias=False)
        projection.weight = Parameter(initializer("zeros", (width, width), ms.float32))
        return nn.SequentialCell(PatchEmbed2D(self.config.patch_size, in_channels, width), projection)

    def embed(self, hidden_states: Tensor) -> Tensor:
        noisy, masked, mask = ops.split(hidden_states.astype(self.proj_out.weight.dtype), self.input_channels, 1)
        return self.pos_embed(noisy) + self.pos_embed_masked_hidden_states(masked) + self.pos_embed_mask(mask)

    @classmethod
    def init_from(
        cls, path: Union[str, Path], dtype=ms.float32, config: Optional[Mapping[str, Any]] = None, use_ema: bool = True
    ) -> OpenSoraInpaint_v1_3:
        """A model to train further: from weights of its own kind, or from those of a text-to-video transformer.

        The latter have no parts for the condition. These start such that they add nothing: their projections are zero.
        The patches of known latents are embedded as noisy ones are, those of the mask at random (were they zero too,
        no gradient would ever reach them). Arguments and errors are those of `from_pretrained`.
        """
        source = find_weights(path)
        state = open_state(source, use_ema)
        if any(name.startswith(CONDITION_PARTS) for name in state):
            return cls.from_pretrained(path, dtype, config, use_ema)
        model = cls(**(read_config(path) if config is None else config))
        model.dtype = dtype
        new = {
            name: parameter.asnumpy()
            for name, parameter in model.parameters_and_names()
            if name.startswith(CONDITION_PARTS)
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
            f"{source}: weights of a text-to-video model; the parts for the condition are new, and add nothing "
            f"before they are trained: {', '.join(name + '*' for name in CONDITION_PARTS)}"
        )
        return model
