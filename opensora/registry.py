"""What the `type` of a config's dict can name, and how it is built: models, schedulers and datasets of both families.

    build(dict(type="iddpm", num_sampling_steps=100, cfg_scale=7.0))

The other keys of the dict are fields of what the type names; all are local files, nothing is downloaded.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import mindspore as ms

from opensora.checkpoint.files import resolve_path
from opensora.config.options import check_known, did_you_mean
from opensora.datasets.bucketed.dataset import VariableVideoTextDataset, VideoTextDataset
from opensora.errors import UserError
from opensora.models import MT5EncoderModel, OpenSoraT2V_v1_3, STDiT2, VideoAutoencoderKL, WFVAEModel, get_vae
from opensora.models.autoencoder_kl.config import AutoencoderKLConfig
from opensora.models.dit.config import PRESETS as DIT_PRESETS
from opensora.models.dit.config import OpenSoraConfig
from opensora.models.pretrained import ModelConfig
from opensora.models.stdit.config import PRESETS as STDIT_PRESETS
from opensora.models.stdit.config import STDiT2Config
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.models.vaes import VAES
from opensora.pipelines.text import TextEncoder
from opensora.schedulers import SCHEDULERS, get_scheduler
from opensora.schedulers.base import ScheduleOptions, Scheduler
from opensora.schedulers.iddpm import SAMPLERS

MODEL, VAE, TEXT_ENCODER, SCHEDULER, DATASET = "model", "vae", "text_encoder", "scheduler", "dataset"
PRETRAINED = ("from_pretrained", "cache_dir", "local_files_only")


class Entry(NamedTuple):
    """A registered type: `make` takes its fields by name. `model` is the class whose folder `from_pretrained` names."""

    kind: str
    make: Callable[..., Any]
    fields: tuple
    model: Optional[type] = None


@dataclass
class GuidedSampler:
    """A sampler of Open-Sora-Plan with what its pipeline is told beside it."""

    scheduler: Scheduler
    num_sampling_steps: int = 100
    cfg_scale: float = 7.5


def build(config: Optional[Mapping[str, Any]], kind: Optional[str] = None, **context) -> Any:
    """What the config describes; None for None.

    Args:
        kind: what it should be: "model", "vae", "text_encoder", "scheduler" or "dataset"; None: any.
        context: fields from the program, over those of the config. A type gets those that it knows: `dtype`, and
            in_channels, caption_channels, model_max_length of a model.

    Raises:
        FileNotFoundError: weights or data that are not on this machine.
        UserError: an unknown type or field, a type of another kind, or what building it finds wrong.
    """
    if config is None:
        return None
    entry, given = check_part(config, kind)
    return entry.make(**{**given, **{field: value for field, value in context.items() if field in entry.fields}})


def check_part(config: Mapping[str, Any], kind: Optional[str] = None) -> tuple[Entry, dict[str, Any]]:
    """The entry that a part's `type` names, and the part's other fields, whose names are checked. Loads nothing.

    Raises:
        UserError: an unknown type or field, or a type of another kind.
    """
    given = dict(config)
    name = given.pop("type", None)
    known = [key for key, entry in REGISTRY.items() if kind in (None, entry.kind)]
    if name not in known:
        raise UserError(
            f"type {name!r} is no {kind or 'type'} that is known{did_you_mean(name, known)}; choose from "
            f"{', '.join(known)}"
        )
    entry = REGISTRY[name]
    check_known(given, entry.fields, name)
    return entry, given


def check_folders(config: Mapping[str, Any]) -> None:
    """Checks the config.json of each folder that a config names, before anything is loaded.

    Raises:
        FileNotFoundError: a folder is not on this machine.
        UserError: one is of another model.
    """
    for part in (config[name] for name in (MODEL, VAE, TEXT_ENCODER) if config.get(name)):
        entry = REGISTRY.get(part.get("type"))
        if entry and entry.model and part.get("from_pretrained"):
            folder = _weights_folder(local_weights(part["from_pretrained"], part.get("cache_dir")))
            if (folder / "config.json").is_file():
                entry.model.published_config(folder, "from_pretrained of " + part["type"])


def _weights_folder(path: Path) -> Path:
    """The folder of the weights at a path, which may be a checkpoint of a training."""
    inner = path / "model" if (path / "model").is_dir() else path
    return inner if inner.is_dir() else inner.parent


def local_weights(name: str, cache_dir: Optional[str] = None) -> Path:
    """The path itself, or what the hub's own tools have downloaded under that name into their cache.

    Raises:
        FileNotFoundError: neither is on this machine.
    """
    try:
        return resolve_path(name)
    except FileNotFoundError:
        pass
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, cache_dir=cache_dir, local_files_only=True))
    except (ImportError, OSError, ValueError) as error:  # no such package, not downloaded, no name of the hub
        raise FileNotFoundError(
            f"{name}: no such file or folder; give the path of the weights, or download them: "
            f"huggingface-cli download {name} --local-dir {name}"
        ) from error


def _names(config: type) -> tuple:
    return tuple(field.name for field in fields(config))


def _model_entry(
    kind: str, model: type, config: type[ModelConfig], preset: Mapping[str, Any], more: tuple = ()
) -> Entry:
    """A model whose fields are those of its configuration: over the config.json beside the weights, else the preset."""

    def make(
        from_pretrained: Optional[str] = None,
        cache_dir: Optional[str] = None,
        local_files_only: bool = True,
        dtype=ms.float32,
        **changes,
    ):
        if from_pretrained is None:
            return model(**{**preset, **changes}).cast(dtype)
        path = local_weights(from_pretrained, cache_dir)
        folder = _weights_folder(path)
        base = model.published_config(folder) if (folder / "config.json").is_file() else preset
        return model.from_pretrained(path if path.is_file() else folder, dtype, {**base, **changes})

    return Entry(kind, make, (*PRETRAINED, "dtype", *_names(config), *more), model)


def _wfvae_entry(name: str) -> Entry:
    def make(
        from_pretrained: Optional[str] = None,
        cache_dir: Optional[str] = None,
        local_files_only: bool = True,
        dtype=ms.float32,
        enable_tiling: bool = False,
    ):
        if from_pretrained is None:
            raise UserError(f"{name}: the field from_pretrained is missing, the folder of the autoencoder")
        vae: WFVAEModel = get_vae(name, local_weights(from_pretrained, cache_dir), dtype)
        vae.enable_tiling(enable_tiling)
        return vae

    return Entry(VAE, make, (*PRETRAINED, "dtype", "enable_tiling"), WFVAEModel)


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
            raise UserError(f"{name}: the field from_pretrained is missing, the folder of the text encoder")
        path = local_weights(from_pretrained, cache_dir)
        # `shardformer` means 16 bits; T5 computes in float32 without it, whatever the model does.
        encoder = MT5EncoderModel.from_pretrained(path, ms.float32 if always_float32 and not shardformer else dtype)
        return TextEncoder(encoder, Tokenizer(path), model_max_length)

    return Entry(TEXT_ENCODER, make, (*PRETRAINED, "dtype", "model_max_length", "shardformer"), MT5EncoderModel)


def _sampler_entry(name: str) -> Entry:
    """A sampler of Open-Sora-Plan by its published name."""

    def make(num_sampling_steps: int = 100, cfg_scale: float = 7.5, **options) -> GuidedSampler:
        return GuidedSampler(get_scheduler(name, **options), num_sampling_steps, cfg_scale)

    return Entry(SCHEDULER, make, ("num_sampling_steps", "cfg_scale", *_names(ScheduleOptions)))


def _dataset_entry(dataset: type) -> Entry:
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
    **{name: _wfvae_entry(name) for name in VAES},
    "t5": _text_encoder_entry("t5", 120, always_float32=True),
    "mt5": _text_encoder_entry("mt5", 512, always_float32=False),
    **{name: Entry(SCHEDULER, sampler, _names(sampler)) for name, sampler in SAMPLERS.items()},
    **{name: _sampler_entry(name) for name in SCHEDULERS},
    "VideoTextDataset": _dataset_entry(VideoTextDataset),
    "VariableVideoTextDataset": _dataset_entry(VariableVideoTextDataset),
}
