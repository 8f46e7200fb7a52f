"""The diffusion transformer of Open-Sora-Plan v1.3 (Lin et al. 2024, arXiv:2412.00131)."""

from __future__ import annotations

from opensora.models.dit.config import OpenSoraConfig
from opensora.models.dit.transformer import RotaryTransformer


class OpenSoraT2V_v1_3(RotaryTransformer):
    """Predicts noise or velocity from noisy latents, conditioned on the timestep and the text.

    Most blocks have skiparse self-attention.
    """

    config_class: type[OpenSoraConfig] = OpenSoraConfig
    config: OpenSoraConfig

    def __init__(self, **values):
        super().__init__(**values)
        config = self.config
        self.scales = (config.interpolation_scale_t, config.interpolation_scale_h, config.interpolation_scale_w)
