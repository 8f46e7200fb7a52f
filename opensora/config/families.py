"""Names that flags and config files accept, and which of them go together. The objects they name are elsewhere.

`opensora.models` and `opensora.schedulers` import MindSpore; these names are known without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from opensora.config.options import check_choice
from opensora.errors import UserError

# Autoencoder -> (latent channels, temporal stride, spatial stride). Names start with that of the class.
VAES = {
    "CausalVAEModel_4x8x8": (4, 4, 8),  # of v1.0 and v1.1
    "CausalVAEModel_D4_4x8x8": (4, 4, 8),  # of v1.2
    "WFVAEModel_D8_4x8x8": (8, 4, 8),
    "WFVAEModel_D16_4x8x8": (16, 4, 8),
    "WFVAEModel_D32_4x8x8": (32, 4, 8),
    "WFVAEModel_D32_8x8x8": (32, 8, 8),
}
DEFAULT_VAE = "WFVAEModel_D8_4x8x8"
PLAN, PLAN_INPAINT = "OpenSoraT2V_v1_3-2B/122", "OpenSoraInpaint_v1_3-2B/122"
DIT_PRESETS = (PLAN, PLAN_INPAINT)
PLAN_V1_2, PLAN_V1_1 = OLDER_PRESETS = ("OpenSoraT2V-ROPE-L/122", "LatteT2V-XL/122")  # Open-Sora-Plan v1.2, v1.1
SAMPLERS = (
    "EulerAncestralDiscrete",
    "EulerDiscrete",
    "DDIM",
    "DDPM",
    "DPMSolverMultistep",
    "DPMSolverSinglestep",
    "PNDM",
    "HeunDiscrete",
    "DEISMultistep",
    "KDPM2AncestralDiscrete",
    "CogVideoX",
    "FlowMatchEulerDiscrete",
)
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
# Options of sampling and training, and keys of config.json, that must be the same when weights are trained and sampled.
NOISE_SCHEDULE_KEYS = ("rescale_betas_zero_snr", "v1_5_scheduler")
OBJECTIVE_KEYS = ("prediction_type", *NOISE_SCHEDULE_KEYS)
# The noise schedule of Stable Diffusion 1.5, which --v1_5_scheduler chooses.
V1_5_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


class Family(NamedTuple):
    """The types that a model can be combined with in a config file; `objectives` are the schedulers of training.

    Attributes:
        conditioning_frames: the model can continue given frames.
        fixed_size: the model is built for one number of frames, height and width.
    """

    vae: tuple[str, ...]
    text_encoder: tuple[str, ...]
    samplers: tuple[str, ...]
    objectives: tuple[str, ...]
    dataset: tuple[str, ...]
    conditioning_frames: bool = False
    fixed_size: bool = False


_STDIT2 = Family(
    vae=("VideoAutoencoderKL",),
    text_encoder=("t5", "mt5"),
    samplers=("iddpm", "dpm-solver"),
    objectives=("iddpm", "iddpm-speed"),
    dataset=("VariableVideoTextDataset", "VideoTextDataset"),
    conditioning_frames=True,
)
_STDIT = _STDIT2._replace(dataset=("VideoTextDataset",), fixed_size=True)
_PIXART = _STDIT._replace(conditioning_frames=False)
_DIT = _PIXART._replace(text_encoder=("clip", "classes"))
FAMILIES = {
    "STDiT2-XL/2": _STDIT2,
    "STDiT-XL/2": _STDIT,
    "STDiT-XL/2x2": _STDIT._replace(conditioning_frames=False),  # its patches have two frames each
    "DiT-XL/2": _DIT,
    "DiT-XL/2x2": _DIT,
    "Latte-XL/2": _DIT,
    "Latte-XL/2x2": _DIT,
    "PixArt-XL/2": _PIXART,
    "PixArtMS-XL/2": _PIXART,
    PLAN: Family(
        vae=tuple(name for name in VAES if name.startswith("WFVAE")),
        text_encoder=("mt5", "t5"),
        samplers=SAMPLERS,
        objectives=SAMPLERS,
        dataset=("T2VDataset",),
    ),
}


def check_family(config: Mapping[str, Any], training: bool) -> None:
    """Raises UserError if the types of a config are incompatible."""
    model = config["model"]["type"]
    check_choice("model type", model, FAMILIES)
    family = FAMILIES[model]
    allowed = {"vae": family.vae, "text_encoder": family.text_encoder, "scheduler": family.samplers}
    if training:
        allowed.update(scheduler=family.objectives, dataset=family.dataset)
    for name, types in allowed.items():
        if config[name]["type"] not in types:
            raise UserError(
                f"{name} type {config[name]['type']!r} is incompatible with the model {model}; choose from "
                f"{', '.join(types)}"
            )
    if "classes" in family.text_encoder:
        _check_condition(config["model"], config["text_encoder"])


def _check_condition(model: Mapping[str, Any], text_encoder: Mapping[str, Any]) -> None:
    """Raises UserError if a model is conditioned on something else than the text encoder makes."""
    needed = f"label_{text_encoder.get('num_classes')}" if text_encoder["type"] == "classes" else "text"
    condition = model.get("condition", "text")
    if condition != needed:
        raise UserError(
            f"model.condition {condition!r} is incompatible with the text_encoder {text_encoder['type']!r}: it should "
            f"be {needed!r}, or for 'label_N' the text_encoder dict(type='classes', num_classes=N)"
        )
