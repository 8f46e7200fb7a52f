"""Small random weights with the layout of the published releases of Open-Sora-Plan, to try commands without a download.

The config.json of each transformer has the published numbers and sizes of frames; only widths and depths are small.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from opensora.config.generations import GENERATIONS
from opensora.doctor import tiny_release
from opensora.doctor.tiny_release import with_weights
from opensora.models import CausalVAEModel, LatteT2V, OpenSoraT2V, OpenSoraT2V_v1_3, WFVAEModel
from opensora.models.pretrained import PretrainedModel
from opensora.utils.folder_lock import exclusive_folder

WIDTH = {"num_attention_heads": 2, "attention_head_dim": 48, "cross_attention_dim": 96, "caption_channels": 32}
LATTE = {**WIDTH, "num_layers": 2, "in_channels": 4, "out_channels": 8, "num_embeds_ada_norm": 1000}
V1_2 = {
    **WIDTH,
    "num_layers": 2,
    "in_channels": 4,
    "out_channels": 4,
    "use_rope": True,
    "interpolation_scale_t": 1.0,
    "interpolation_scale_h": 1.0,
    "interpolation_scale_w": 1.0,
}
RES_BLOCKS = ["ResnetBlock2D", "ResnetBlock2D", "ResnetBlock3D", "ResnetBlock3D"]
CAUSAL_VAE = {"hidden_size": 32, "hidden_size_mult": [1, 1, 1, 1], "num_res_blocks": 1}
LATER_CAUSAL_VAE = {
    **CAUSAL_VAE,
    "encoder_conv_in": "Conv2d",
    "encoder_attention": "AttnBlock3DFix",
    "encoder_resnet_blocks": RES_BLOCKS,
    "decoder_attention": "AttnBlock3DFix",
}
VAES: Mapping[str, dict[str, Any]] = {
    "v1_0": {**CAUSAL_VAE, "encoder_temporal_downsample": ["TimeDownsample2x", "TimeDownsample2x", "", ""]},
    "v1_1": {
        **LATER_CAUSAL_VAE,
        "encoder_spatial_downsample": ["Downsample", "Downsample", "Downsample", ""],
        "encoder_temporal_downsample": ["", "TimeDownsampleRes2x", "TimeDownsampleRes2x", ""],
        "decoder_temporal_upsample": ["", "", "TimeUpsampleRes2x", "TimeUpsampleRes2x"],
    },
    "v1_2": {
        **LATER_CAUSAL_VAE,
        "encoder_spatial_downsample": ["Downsample", *["Spatial2xTime2x3DDownsample"] * 2, ""],
        "encoder_temporal_downsample": [""] * 4,
        "decoder_spatial_upsample": ["", "SpatialUpsample2x", *["Spatial2xTime2x3DUpsample"] * 2],
        "decoder_temporal_upsample": [""] * 4,
    },
}


class Layout(NamedTuple):
    """Folders of a release, from that of the output, and the config of the transformer in each subfolder."""

    release: str
    text_encoder: str
    transformer: type[PretrainedModel]
    transformers: Mapping[str, dict[str, Any]]


def _latte(pixels: int, latent_frames: int, **keys: Any) -> dict[str, Any]:
    return {**LATTE, "sample_size": [pixels // 8, pixels // 8], "video_length": latent_frames, **keys}


def _v1_2(height: int, width: int, latent_frames: int) -> dict[str, Any]:
    return {**V1_2, "sample_size": [height // 8, width // 8], "sample_size_t": latent_frames}


LAYOUTS = {
    "v1_0": Layout(
        "LanguageBind/Open-Sora-Plan-v1.0.0",
        "DeepFloyd/t5-v1_1-xxl",
        LatteT2V,
        {"17x256x256": _latte(256, 5), "65x256x256": _latte(256, 17), "65x512x512": _latte(512, 17)},
    ),
    "v1_1": Layout(
        "LanguageBind/Open-Sora-Plan-v1.1.0",
        "DeepFloyd/t5-v1_1-xxl",
        LatteT2V,
        {"65x512x512": _latte(512, 17, use_rope=False), "221x512x512": _latte(512, 56, use_rope=False)},
    ),
    "v1_2": Layout(
        "LanguageBind/Open-Sora-Plan-v1.2.0",
        "google/mt5-xxl",
        OpenSoraT2V,
        {
            "93x720p": _v1_2(720, 1280, 24),
            "93x480p": _v1_2(480, 640, 24),
            "29x720p": _v1_2(720, 1280, 8),
            "29x480p": _v1_2(480, 640, 8),
            "1x480p": _v1_2(480, 640, 1),
        },
    ),
    "v1_3": Layout(
        "LanguageBind/Open-Sora-Plan-v1.3.0",
        "google/mt5-xxl",
        OpenSoraT2V_v1_3,
        {"any93x640x640": {**tiny_release.DIT, "sample_size_t": 24, "sample_size_h": 80, "sample_size_w": 80}},
    ),
}
assert list(LAYOUTS) == list(GENERATIONS)


def write_release(folder: Path, version: str) -> list[Path]:
    """Writes the weights of the generation `version` into a new or empty folder; returns the folders of the models."""
    with exclusive_folder(folder):
        return list(_write(folder, version))


def _write(folder: Path, version: str) -> Iterator[Path]:
    layout = LAYOUTS[version]
    for name, config in layout.transformers.items():
        yield _save(layout.transformer(**config), folder / layout.release / name)
    vae = WFVAEModel(**tiny_release.VAE) if version == "v1_3" else CausalVAEModel(**VAES[version])
    yield _save(vae, folder / layout.release / "vae")
    yield tiny_release.write_text_encoder(folder / layout.text_encoder)


def _save(model: PretrainedModel, folder: Path) -> Path:
    with_weights(model).save_pretrained(folder)
    return folder
