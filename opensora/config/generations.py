"""The generations of Open-Sora-Plan: which weights go together, and the settings that they are sampled with.

`opensora.models` imports MindSpore; what is here is known without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Optional

from opensora.config.families import DEFAULT_VAE
from opensora.config.options import check_choice
from opensora.config.prompts import NEGATIVE, POSITIVE, POSITIVE_V1_2
from opensora.errors import UserError

SIZE_STEP, OLDER_SIZE_STEP = 32, 16  # heights and widths are multiples of it: in v1.3, and before
# Settings of a run that a generation does not change; the names are those of the options of sample.py.
COMMON_SETTINGS: dict[str, Any] = {
    "num_frames": 93,
    "height": 352,
    "width": 640,
    "fps": 24,
    "sample_method": "EulerAncestralDiscrete",
    "num_sampling_steps": 100,
    "guidance_scale": 7.5,
    "max_sequence_length": 512,
    "negative_prompt": NEGATIVE,
}


@dataclass(frozen=True)
class Generation:
    """A generation of the published weights.

    Attributes:
        name: as `--version` takes it.
        release: its name in texts.
        transformer: class of the text-to-video model.
        vae: name of the autoencoder, as `--ae` takes it.
        settings: values of options of sample.py, in place of those of `COMMON_SETTINGS`.
        image_settings: the same for images, in place of those of `settings`.
        zero_snr: the weights were trained with a noise schedule of zero terminal SNR.
        size_step: heights and widths are multiples of this number of pixels.
        cleanings: how often the captions' cleaning is applied to prompts.
        cuts_texts: the prompt and the negative prompt are cut to the number of tokens of the prompt, without a mask of
            padding, as in the published program. Other padding changes the result.
        clips_x0: DDIM and DDPM clip the predicted x_0 to [-1, 1], as in the published program. That is meant for pixels
            and harms latents.
        diffusers_spacing: samplers space their timesteps as those of diffusers do by default.
        tiling: of `opensora.models.causal_vae.tiling.PUBLISHED_TILING`, for `--enable_tiling`; None: the autoencoder
            has no tiles in space.
        saving_tiling: the same with `--save_memory`.
    """

    name: str
    release: str
    transformer: str
    vae: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    image_settings: Mapping[str, Any] = field(default_factory=dict)
    size_step: int = OLDER_SIZE_STEP
    zero_snr: bool = False
    cleanings: int = 2
    cuts_texts: bool = False
    clips_x0: bool = False
    diffusers_spacing: bool = True
    tiling: Optional[str] = None
    saving_tiling: Optional[str] = None

    def settings_for(self, is_image: bool) -> dict[str, Any]:
        """The values of options for videos or images."""
        return {**COMMON_SETTINGS, **self.settings, **(self.image_settings if is_image else {})}


_V1_0_TEXT = {"prompt_template": "{}", "negative_prompt": "", "max_sequence_length": 300}
_V1_0_SAMPLING = {"sample_method": "PNDM", "prediction_type": "epsilon", "num_frames": 65}
_512_PIXELS = {"height": 512, "width": 512}

GENERATIONS = {
    generation.name: generation
    for generation in (
        Generation(
            "v1_0",
            "Open-Sora-Plan v1.0",
            "LatteT2V",
            "CausalVAEModel_4x8x8",
            {**_V1_0_TEXT, **_V1_0_SAMPLING, **_512_PIXELS, "num_sampling_steps": 250},
            {"guidance_scale": 5.0},
            cuts_texts=True,
            clips_x0=True,
            tiling="v1.0",
            saving_tiling="v1.0",
        ),
        Generation(
            "v1_1",
            "Open-Sora-Plan v1.1",
            "LatteT2V",
            "CausalVAEModel_4x8x8",
            {**_V1_0_TEXT, **_V1_0_SAMPLING, **_512_PIXELS, "num_sampling_steps": 150},
            {"guidance_scale": 5.0, "num_sampling_steps": 50},
            cuts_texts=True,
            clips_x0=True,
            tiling="v1.1",
            saving_tiling="v1.1",
        ),
        Generation(
            "v1_2",
            "Open-Sora-Plan v1.2",
            "OpenSoraT2V",
            "CausalVAEModel_D4_4x8x8",
            {"prompt_template": POSITIVE_V1_2, "prediction_type": "epsilon", "height": 480, "width": 640},
            tiling="v1.2 sampling",
            saving_tiling="v1.2 saving memory",
        ),
        Generation(
            "v1_3",
            "Open-Sora-Plan v1.3",
            "OpenSoraT2V_v1_3",
            DEFAULT_VAE,
            {"prompt_template": POSITIVE, "prediction_type": "v_prediction", "fps": 18},
            size_step=SIZE_STEP,
            zero_snr=True,
            cleanings=0,
            diffusers_spacing=False,
        ),
    )
}
LATEST = "v1_3"


def generation_of(config: Mapping[str, Any]) -> Optional[Generation]:
    """The generation of the transformer with this config.json; None for any other model.

    Both v1.0 and v1.1 have the class LatteT2V. Only v1.1 has the key `use_rope`.
    """
    name = config.get("_class_name")
    if name == "LatteT2V":
        return GENERATIONS["v1_1" if "use_rope" in config else "v1_0"]
    if name == "OpenSoraInpaint_v1_3":
        return GENERATIONS["v1_3"]
    return next((generation for generation in GENERATIONS.values() if generation.transformer == name), None)


def generation_of_autoencoder(config: Mapping[str, Any]) -> Optional[Generation]:
    """The generation of the autoencoder with this config.json; None for any other model."""
    name = config.get("_class_name")
    if name == "WFVAEModel":
        return GENERATIONS["v1_3"]
    if name != "CausalVAEModel":
        return None
    if any("Time2x" in layer for layer in config.get("encoder_spatial_downsample", ())):
        return GENERATIONS["v1_2"]
    return GENERATIONS["v1_0" if config.get("encoder_attention", "AttnBlock3D") == "AttnBlock3D" else "v1_1"]


def get_generation(name: str) -> Generation:
    """The generation `name`. Raises UserError for an unknown name."""
    check_choice("version", name, GENERATIONS)
    return GENERATIONS[name]


def as_trained(generation: Generation, config: Mapping[str, Any]) -> Generation:
    """The generation with what a transformer was trained with, as far as it is known.

    That is the prediction type, zero terminal SNR, and before v1.3 the number and size of frames.

    Args:
        config: of the transformer.

    Raises:
        UserError: the number or the size of the frames is not a whole number.
    """
    zero_snr = config.get("rescale_betas_zero_snr")
    found: dict[str, Any] = {}
    if generation.name != LATEST:  # v1.3 is trained with frames of any size
        found.update(_trained_frames(config))
    if config.get("prediction_type"):
        found["prediction_type"] = config["prediction_type"]
    return replace(
        generation,
        settings={**generation.settings, **found},
        zero_snr=generation.zero_snr if zero_snr is None else bool(zero_snr),
    )


def _trained_frames(config: Mapping[str, Any]) -> dict[str, Any]:
    """The number and size of the frames that a transformer was trained with, as far as they are known."""
    found: dict[str, int] = {}
    size, frames = config.get("sample_size"), config.get("video_length", config.get("sample_size_t"))
    try:
        if size is not None:
            found.update(height=8 * int(size[0]), width=8 * int(size[1]))
        if frames is not None:
            found["num_frames"] = 4 * (int(frames) - 1) + 1
    except (TypeError, ValueError, LookupError) as error:
        raise UserError(f"sample_size {size!r:.60}, frames {frames!r:.60}: should be whole numbers") from error
    return found
