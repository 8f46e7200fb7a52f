"""The models, imported on first use: `from opensora.models import WFVAEModel`."""

from __future__ import annotations

import importlib

# The classes that a config.json can name, and their modules.
MODELS = {
    "WFVAEModel": "opensora.models.wfvae.model",
    "CausalVAEModel": "opensora.models.causal_vae.model",
    "OpenSoraT2V_v1_3": "opensora.models.dit.model",
    "OpenSoraInpaint_v1_3": "opensora.models.dit.inpaint",
    "OpenSoraT2V": "opensora.models.dit.v1_2",
    "LatteT2V": "opensora.models.latte.model",
    "STDiT": "opensora.models.stdit.v1_0",
    "STDiT2": "opensora.models.stdit.model",
    "DiT": "opensora.models.dit_xl.model",
    "Latte": "opensora.models.dit_xl.model",
    "PixArt": "opensora.models.pixart.model",
    "PixArtMS": "opensora.models.pixart.model",
    "VideoAutoencoderKL": "opensora.models.autoencoder_kl.model",
    "MT5EncoderModel": "opensora.models.text_encoder.mt5",
    "T5EncoderModel": "opensora.models.text_encoder.mt5",
    "CLIPTextModel": "opensora.models.text_encoder.clip",
}
_MODULES = {**MODELS, "get_vae": "opensora.models.vaes"}

__all__ = list(_MODULES)


def __getattr__(name: str):
    if name not in _MODULES:
        raise AttributeError(f"module 'opensora.models' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
