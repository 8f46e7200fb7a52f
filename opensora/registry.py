"""Builds the components that configs name by `type`: models, schedulers and datasets of both model families.

    build(dict(type="iddpm", num_sampling_steps=100, cfg_scale=7.0))

The other keys are fields of that type. Weights are local files; nothing is downloaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import mindspore as ms

from opensora.checkpoint.files import resolve_path
from opensora.config.families import VAES
from opensora.config.memory import WEIGHTS
from opensora.config.options import check_choice, check_known, did_you_mean
from opensora.datasets.bucketed.dataset import VariableVideoTextDataset, VideoTextDataset
from opensora.errors import UserError
from opensora.models import MT5EncoderModel, OpenSoraT2V_v1_3, STDiT2, VideoAutoencoderKL, get_vae
from opensora.models.autoencoder_kl.config import AutoencoderKLConfig
from opensora.models.dit.config import PRESETS as DIT_PRESETS
from opensora.models.dit.config import OpenSoraConfig
from opensora.models.model_config import ModelConfig
from opensora.models.pretrained import PretrainedModel
from opensora.models.stdit.config import PRESETS as STDIT_PRESETS
from opensora.models.stdit.config import STDiT2Config
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.models.vaes import vae_class
from opensora.ops.backend import convolution_dtype
from opensora.pipelines.stdit import STDiTPipeline
from opensora.pipelines.text import TextEncoder
from opensora.schedulers import SCHEDULERS, GuidedSampler, ScheduleOptions, get_scheduler
from opensora.schedulers.iddpm import SAMPLERS

MODEL, VAE, TEXT_ENCODER, SCHEDULER, DATASET = "model", "vae", "text_encoder", "scheduler", "dataset"
PRETRAINED = ("from_pretrained", "cache_dir", "local_files_only")


class Entry(NamedTuple):
    """A registered type: `make` takes its fields as keywords. `model` is the class that `from_pretrained` loads."""

    kind: str
    make: Callable[..., Any]
    fields: tuple[str, ...]
    model: Optional[type[PretrainedModel]] = None


def build(config: Optional[Mapping[str, Any]], kind: Optional[str] = None, **context) -> Any:
    """Builds the component that a config describes; None for None.

    Args:
        kind: required kind: "model", "vae", "text_encoder", "scheduler" or "dataset"; None: any.
        context: fields set by the program, which override the config. A type receives those that it has: `dtype`, and
            in_channels, caption_channels, model_max_length of a model.

    Raises:
        FileNotFoundError: weights or data that are not on this machine.
        UserError: an unknown type or field, a type of another kind, or invalid values.
    """
    if config is None:
        return None
    entry, values = check_component(config, kind)
    return entry.make(**{**values, **{field: value for field, value in context.items() if field in entry.fields}})


def build_stdit_pipeline(
    config: Mapping[str, Any],
    dtype=ms.float32,
    video_size: Sequence[Optional[int]] = (None, None, None),
    vae_dtype=None,
) -> STDiTPipeline:
    """Builds the components of an Open-Sora v1.1 config, with the model's dimensions set by the other components.

    Args:
        config: with `model`, `vae`, `text_encoder` and `scheduler`.
        video_size: frames, height and width; None if they vary.
        vae_dtype: of the autoencoder; None: `dtype`, but float16 for bfloat16 on Ascend.
    """
    scheduler = build(config["scheduler"], SCHEDULER)  # first, because its errors should not wait for the models
    vae = build(config["vae"], VAE, dtype=vae_dtype or convolution_dtype(dtype)).set_train(False)
    text_encoder = build(config["text_encoder"], TEXT_ENCODER, dtype=dtype)
    model = build(
        config["model"],
        MODEL,
        dtype=dtype,
        input_size=vae.get_latent_size(video_size),
        in_channels=vae.out_channels,
        caption_channels=text_encoder.width,
        model_max_length=text_encoder.max_length,
    ).set_train(False)
    return STDiTPipeline(text_encoder, model, vae, scheduler)


def check_component(config: Mapping[str, Any], kind: Optional[str] = None) -> tuple[Entry, dict[str, Any]]:
    """The registered entry of a config's `type`, and the config's other fields, whose names are checked. Loads nothing.

    Raises:
        UserError: an unknown type or field, or a type of another kind.
    """
    values = dict(config)
    name = values.pop("type", None)
    known = [key for key, entry in REGISTRY.items() if kind in (None, entry.kind)]
    if name not in known:
        raise UserError(
            f"unknown {kind or 'component'} type {name!r}{did_you_mean(name, known)}; choose from {', '.join(known)}"
        )
    entry = REGISTRY[name]
    check_known(values, entry.fields, name)
    return entry, values


def check_folders(config: Mapping[str, Any]) -> None:
    """Checks the config.json of each folder in a config, before any weights are loaded.

    Raises:
        FileNotFoundError: a folder is not on this machine.
        UserError: a folder holds a different model.
    """
    for component in (config[name] for name in (MODEL, VAE, TEXT_ENCODER) if config.get(name)):
        entry = REGISTRY.get(component.get("type"))
        if entry and entry.model and component.get("from_pretrained"):
            folder = _weights_folder(local_weights(component["from_pretrained"], component.get("cache_dir")))
            if (folder / "config.json").is_file():
                entry.model.published_config(folder, "from_pretrained of " + component["type"])


def _weights_folder(path: Path) -> Path:
    """The folder of the weights at a path, which may be a training checkpoint."""
    inner = path / "model" if (path / "model").is_dir() else path
    return inner if inner.is_dir() else inner.parent


def local_weights(name: str, cache_dir: Optional[str] = None) -> Path:
    """The path, or the Hugging Face Hub's cached download of that name.

    Raises:
        FileNotFoundError: neither exists on this machine.
    """
    try:
        return resolve_path(name)
    except FileNotFoundError:
        pass
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, cache_dir=cache_dir, local_files_only=True))
    except (ImportError, OSError, ValueError) as error:  # package not installed, not downloaded, not a repository name
        raise FileNotFoundError(
            f"{name}: no such file or folder; give the path of the weights, or download them: "
            f"huggingface-cli download {name} --local-dir {name}"
        ) from error


def _field_names(config: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(config))


def _model_entry(
    kind: str,
    model: type[PretrainedModel],
    config: type[ModelConfig],
    preset: Mapping[str, Any],
    aliases: tuple[str, ...] = (),
) -> Entry:
    """A model with the fields of its configuration, which override the config.json of the weights, or the preset."""

    def make(
        from_pretrained: Optional[str] = None,
        cache_dir: Optional[str] = None,
        local_files_only: bool = True,
        dtype=ms.float32,
        weights: Optional[str] = None,
        **changes,
    ):
        if from_pretrained is None:
            if weights is not None:
                raise UserError(f"weights {weights!r} is the format of pretrained weights: give from_pretrained")
            return model(**{**preset, **changes}).cast(dtype)
        if weights is not None:
            check_choice("weights", weights, WEIGHTS)
        path = local_weights(from_pretrained, cache_dir)
        folder = _weights_folder(path)
        base = model.published_config(folder) if (folder / "config.json").is_file() else preset
        return model.from_pretrained(path if path.is_file() else folder, dtype, {**base, **changes}, weights=weights)

    return Entry(kind, make, (*PRETRAINED, "dtype", "weights", *_field_names(config), *aliases), model)


def _video_vae_entry(name: str) -> Entry:
    def make(
        from_pretrained: Optional[str] = None,
        cache_dir: Optional[str] = None,
        local_files_only: bool = True,
        dtype=ms.float32,
        enable_tiling: bool = False,
    ):
        if from_pretrained is None:
            raise UserError(f"{name}: the field from_pretrained is missing: the folder of the autoencoder")
        vae = get_vae(name, local_weights(from_pretrained, cache_dir), dtype)
        vae.enable_tiling(enable_tiling)
        return vae

    return Entry(VAE, make, (*PRETRAINED, "dtype", "enable_tiling"), vae_class(name))


def _text_encoder_entry(name: str, default_length: int, always_float32: bool) -> Entry:
    def make(
        from_pretrained: Optional[str] = None,
        cache_dir: Optional[str] = None,
        local_files_only: bool = True,
        model_max_length: int = default_length,
        shardformer: bool = False,
        dtype=ms.float32,
    ) -> TextEncoder:
        if from_pretrained is None:
            raise UserError(f"{name}: the field from_pretrained is missing: the folder of the text encoder")
        path = local_weights(from_pretrained, cache_dir)
        # `shardformer` selects 16-bit T5; without it T5 computes in float32, whatever the model's dtype.
        encoder = MT5EncoderModel.from_pretrained(path, ms.float32 if always_float32 and not shardformer else dtype)
        return TextEncoder(encoder, Tokenizer(path), model_max_length)

    return Entry(TEXT_ENCODER, make, (*PRETRAINED, "dtype", "model_max_length", "shardformer"), MT5EncoderModel)


def _sampler_entry(name: str) -> Entry:
    """An Open-Sora-Plan sampler."""

    def make(num_sampling_steps: int = 100, cfg_scale: float = 7.5, **options) -> GuidedSampler:
        return GuidedSampler(get_scheduler(name, **options), num_sampling_steps, cfg_scale)

    return Entry(SCHEDULER, make, ("num_sampling_steps", "cfg_scale", *_field_names(ScheduleOptions)))


def _dataset_entry(dataset: Callable[..., Any]) -> Entry:
    return Entry(DATASET, dataset, tuple(inspect.signature(dataset).parameters))


REGISTRY: dict[str, Entry] = {
    **{
        name: _model_entry(MODEL, STDiT2, STDiT2Config, preset, tuple(STDiT2Config.respelled))
        for name, preset in STDIT_PRESETS.items()
    },
    **{
        name: _model_entry(MODEL, OpenSoraT2V_v1_3, OpenSoraConfig, preset)
        for name, preset in DIT_PRESETS.items()
        if name.startswith(OpenSoraT2V_v1_3.__name__)
    },
    "VideoAutoencoderKL": _model_entry(VAE, VideoAutoencoderKL, AutoencoderKLConfig, {}),
    **{name: _video_vae_entry(name) for name in VAES},
    "t5": _text_encoder_entry("t5", 120, always_float32=True),
    "mt5": _text_encoder_entry("mt5", 512, always_float32=False),
    **{name: Entry(SCHEDULER, sampler, _field_names(sampler)) for name, sampler in SAMPLERS.items()},
    **{name: _sampler_entry(name) for name in SCHEDULERS},
    "VideoTextDataset": _dataset_entry(VideoTextDataset),
    "VariableVideoTextDataset": _dataset_entry(VariableVideoTextDataset),
}
