"""Builds the components that configs name by `type`: models, schedulers and datasets of both model families.

    build(dict(type="iddpm", num_sampling_steps=100, cfg_scale=7.0))

The other keys are fields of that type. Weights are local files; nothing is downloaded.
"""

from __future__ import annotations

import inspect
import re
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
from opensora.models import (
    CLIPTextModel,
    DiT,
    Latte,
    MT5EncoderModel,
    OpenSoraT2V_v1_3,
    PixArt,
    PixArtMS,
    STDiT,
    STDiT2,
    VideoAutoencoderKL,
    get_vae,
)
from opensora.models.autoencoder_kl.config import AutoencoderKLConfig
from opensora.models.dit.config import PRESETS as PLAN_PRESETS
from opensora.models.dit_xl.config import LATTE_PRESETS
from opensora.models.dit_xl.config import PRESETS as DIT_PRESETS
from opensora.models.pixart.config import MS_PRESETS
from opensora.models.pixart.config import PRESETS as PIXART_PRESETS
from opensora.models.pretrained import PretrainedModel
from opensora.models.stdit.config import PRESETS as STDIT2_PRESETS
from opensora.models.stdit.config import V1_0_PRESETS
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.models.vaes import vae_class
from opensora.ops.backend import convolution_dtype
from opensora.pipelines.stdit import STDiTPipeline
from opensora.pipelines.text import TextEncoder
from opensora.pipelines.text_conditions import ClassLabels, PooledTextEncoder
from opensora.schedulers import SCHEDULERS, GuidedSampler, ScheduleOptions, get_scheduler
from opensora.schedulers.iddpm import SAMPLERS

MODEL, VAE, TEXT_ENCODER, SCHEDULER, DATASET = "model", "vae", "text_encoder", "scheduler", "dataset"
PRETRAINED = ("from_pretrained", "cache_dir", "local_files_only")
# A repository of the Hugging Face Hub, or a file in it.
HUB_NAME = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(/(?P<file>.+))?")


class Entry(NamedTuple):
    """A registered type: `make` takes its fields as keywords.

    Attributes:
        model: the class that `from_pretrained` loads.
        preset: the configuration of a model without a config.json.
    """

    kind: str
    make: Callable[..., Any]
    fields: tuple[str, ...]
    model: Optional[type[PretrainedModel]] = None
    preset: Mapping[str, Any] = {}


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
    """Builds the components of an Open-Sora config, with the model's dimensions set by the other components.

    Args:
        config: with `model`, `vae`, `text_encoder` and `scheduler`.
        video_size: frames, height and width; None if they vary.
        vae_dtype: of the autoencoder; None: `dtype`, but float16 for bfloat16 on Ascend.
    """
    scheduler = build(config["scheduler"], SCHEDULER)  # first, because its errors should not wait for the models
    vae = build(config["vae"], VAE, dtype=vae_dtype or convolution_dtype(dtype)).set_train(False)
    text_encoder = build(config["text_encoder"], TEXT_ENCODER, dtype=dtype)
    text = {} if text_encoder.width is None else {"caption_channels": text_encoder.width}
    model = build(
        config["model"],
        MODEL,
        dtype=dtype,
        input_size=vae.get_latent_size(video_size),
        in_channels=vae.out_channels,
        model_max_length=text_encoder.max_length,
        **text,
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


def check_size(config: Mapping[str, Any], video_size: Sequence[int]) -> None:
    """Checks that the model of an Open-Sora config accepts videos of a size, before any weights are loaded.

    Args:
        video_size: frames, height and width.

    Raises:
        FileNotFoundError: a folder is not on this machine.
        UserError: the size, or another field, is invalid.
    """
    _, vae = _configuration(config[VAE])
    model_class, model = _configuration(config[MODEL])
    latent_size = AutoencoderKLConfig.from_dict(vae).latent_size(video_size)
    try:
        model_class.config_class.from_dict({**model, "input_size": latent_size})
    except UserError as error:
        frames, height, width = video_size
        raise UserError(
            f"{config[MODEL]['type']} with num_frames {frames} and image_size {height, width}: {error}"
        ) from error


def _configuration(component: Mapping[str, Any]) -> tuple[type[PretrainedModel], dict[str, Any]]:
    """The class of a model, and its config.json or preset, overridden by the fields of a config."""
    entry, values = check_component(component)
    assert entry.model is not None, "a component that is loaded from files"
    changes = {name: value for name, value in values.items() if name not in (*PRETRAINED, "dtype", "weights")}
    base = _base_config(entry.model, entry.preset, values.get("from_pretrained"), values.get("cache_dir"))
    return entry.model, {**base, **changes}


def _base_config(
    model: type[PretrainedModel], preset: Mapping[str, Any], from_pretrained: Optional[str], cache_dir: Optional[str]
) -> Mapping[str, Any]:
    """The config.json of pretrained weights, or the preset if there is none."""
    if from_pretrained is None:
        return preset
    folder = _weights_folder(local_weights(from_pretrained, cache_dir))
    return model.published_config(folder) if (folder / "config.json").is_file() else preset


def _weights_folder(path: Path) -> Path:
    """The folder of the weights at a path, which may be a training checkpoint."""
    inner = path / "model" if (path / "model").is_dir() else path
    return inner if inner.is_dir() else inner.parent


def local_weights(name: str, cache_dir: Optional[str] = None) -> Path:
    """The path, or the Hugging Face Hub's cached download of that name: ORG/REPOSITORY or a file in it.

    Raises:
        FileNotFoundError: neither exists on this machine.
    """
    try:
        return resolve_path(name)
    except FileNotFoundError:
        pass
    found = HUB_NAME.fullmatch(name)
    if found is None:
        raise FileNotFoundError(f"{name}: no such file or folder; give the path of the weights")
    repository, file = found["repository"], found["file"] or ""
    try:
        from huggingface_hub import snapshot_download

        path = Path(snapshot_download(repository, cache_dir=cache_dir, local_files_only=True)) / file
        if path.exists():
            return path
    except (ImportError, OSError, ValueError):  # package not installed, not downloaded, not a repository name
        pass
    download = " ".join(filter(None, ("huggingface-cli download", repository, file)))
    raise FileNotFoundError(
        f"{name}: no such file or folder; give the path of the weights, or download them: {download} --local-dir "
        f"{repository}"
    )


def _field_names(config: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(config))


def _model_entry(kind: str, model: type[PretrainedModel], preset: Mapping[str, Any]) -> Entry:
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
        base = _base_config(model, preset, from_pretrained, cache_dir)
        source = path if path.is_file() else _weights_folder(path)
        return model.from_pretrained(source, dtype, {**base, **changes}, weights=weights)

    respelled = getattr(model.config_class, "respelled", {})
    fields = (*PRETRAINED, "dtype", "weights", *_field_names(model.config_class), *respelled)
    return Entry(kind, make, fields, model, preset)


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


def _make_clip(
    from_pretrained: Optional[str] = None,
    cache_dir: Optional[str] = None,
    local_files_only: bool = True,
    model_max_length: int = 77,
) -> PooledTextEncoder:
    if from_pretrained is None:
        raise UserError("clip: the field from_pretrained is missing: the folder of the text encoder")
    path = local_weights(from_pretrained, cache_dir)
    # Small enough for float32, whatever the model's dtype.
    return PooledTextEncoder(CLIPTextModel.from_pretrained(path, ms.float32), Tokenizer(path), model_max_length)


def _make_classes(num_classes: Optional[int] = None, model_max_length: int = 1) -> ClassLabels:
    """`model_max_length` has no effect: classes are not texts."""
    if type(num_classes) is not int or num_classes < 1:
        raise UserError(f"classes: num_classes {num_classes!r} should be the number of classes, 1 or more")
    return ClassLabels(num_classes)


def _sampler_entry(name: str) -> Entry:
    """An Open-Sora-Plan sampler."""

    def make(num_sampling_steps: int = 100, cfg_scale: float = 7.5, **options) -> GuidedSampler:
        return GuidedSampler(get_scheduler(name, **options), num_sampling_steps, cfg_scale)

    return Entry(SCHEDULER, make, ("num_sampling_steps", "cfg_scale", *_field_names(ScheduleOptions)))


def _parameters(make: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(make).parameters)


REGISTRY: dict[str, Entry] = {
    **{
        name: _model_entry(MODEL, model, preset)
        for model, presets in (
            (STDiT2, STDIT2_PRESETS),
            (STDiT, V1_0_PRESETS),
            (DiT, DIT_PRESETS),
            (Latte, LATTE_PRESETS),
            (PixArt, PIXART_PRESETS),
            (PixArtMS, MS_PRESETS),
            (OpenSoraT2V_v1_3, PLAN_PRESETS),
        )
        for name, preset in presets.items()
        if name.startswith(model.__name__)
    },
    "VideoAutoencoderKL": _model_entry(VAE, VideoAutoencoderKL, {}),
    **{name: _video_vae_entry(name) for name in VAES},
    "t5": _text_encoder_entry("t5", 120, always_float32=True),
    "mt5": _text_encoder_entry("mt5", 512, always_float32=False),
    "clip": Entry(TEXT_ENCODER, _make_clip, _parameters(_make_clip), CLIPTextModel),
    "classes": Entry(TEXT_ENCODER, _make_classes, _parameters(_make_classes)),
    **{name: Entry(SCHEDULER, sampler, _field_names(sampler)) for name, sampler in SAMPLERS.items()},
    **{name: _sampler_entry(name) for name in SCHEDULERS},
    "VideoTextDataset": Entry(DATASET, VideoTextDataset, _parameters(VideoTextDataset)),
    "VariableVideoTextDataset": Entry(DATASET, VariableVideoTextDataset, _parameters(VariableVideoTextDataset)),
}
