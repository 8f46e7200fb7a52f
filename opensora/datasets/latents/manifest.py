"""The manifest of a latent cache: what it was made from, and its files.

A cache is a folder that `opensora encode` writes:

    latents-RRRR-NNNNN.safetensors    moments of the autoencoder, written by rank R; .json lists its samples
    texts-RRRR-NNNNN.safetensors      states of the text encoder; .json lists its texts
    index-DIGEST.safetensors          the place of every sample and text
    manifest.json                     settings, models, the samples, and the SHA-256 of all files above

See `opensora.datasets.latents.shards` for the tensors of a shard, and `opensora.datasets.latents.cache` for the index.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Optional

from opensora.datasets.t2v.index import SELECTION_OPTIONS
from opensora.datasets.t2v.options import InpaintDataOptions, T2VDataOptions
from opensora.errors import UserError
from opensora.utils.files import atomic_write
from opensora.utils.json_text import read_json

MANIFEST = "manifest.json"
FORMAT = 1  # version of the files
REQUIRED: dict[str, set[str]] = {
    "settings": set(),
    "encoding": {"--crops"},
    "autoencoder": {"config", "digest", "precision"},
    "text_encoder": {"digest", "width", "knows_chinese", "precision"},
    "files": set(),
}


@dataclass(frozen=True)
class Manifest:
    """The content of manifest.json. Keys of `settings` and `encoding` are flags, or texts for error messages.

    Attributes:
        settings: what training must have in common with the cache, see `data_settings`.
        encoding: the other settings, which a repeated `opensora encode` must have too.
        autoencoder: `config`, the keys of its config.json; `digest` of configuration and weights; `precision`.
        text_encoder: `digest` (None if embeddings do not record it), `width` in channels, `knows_chinese`, `precision`.
        samples: `SampleIndex.digest` of the data; None: the cache is not complete.
        index: name of the index file.
        files: SHA-256 of each file, by name; shards are numbered in this order.
    """

    settings: Mapping[str, Any]
    encoding: Mapping[str, Any]
    autoencoder: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    samples: Optional[str] = None
    index: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a folder.

        Raises:
            FileNotFoundError: the folder has none.
            UserError: it is damaged, or of another version.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file; opensora encode --output {folder} makes a latent cache")
        content = read_json(path)
        names = {item.name for item in dataclasses.fields(cls)}
        if not isinstance(content, dict) or content.get("format") != FORMAT or set(content) != names:
            raise UserError(f"{path}: not a manifest of version {FORMAT}; run opensora encode with another --output")
        for name, keys in REQUIRED.items():
            if not isinstance(content[name], dict) or not keys <= set(content[name]):
                raise UserError(f"{path}: {name} is damaged; run opensora encode with another --output")
        for name in (*content["files"], str(content["index"])):
            if Path(name).name != name:
                raise UserError(f"{path}: {name!r:.100} is not the name of a file in the folder")
        return cls(**content)

    def write(self, folder: Path) -> None:
        with atomic_write(folder / MANIFEST) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")


def data_settings(options: T2VDataOptions) -> dict[str, Any]:
    """The flags of the data that latents and texts depend on.

    `sp_size` is not among them. It may only shorten clips, and then the samples differ (`SampleIndex.digest`).
    """
    names = (*(name for name in SELECTION_OPTIONS if name != "sp_size"), "model_max_length", "text_embed_cache")
    settings = {"--dataset": "t2v", **{f"--{name}": getattr(options, name) for name in names}}
    settings["--sample_rate"] = options.sample_rate if options.is_older else None
    if isinstance(options, InpaintDataOptions):
        masks = {f"--mask_config: {name}": value for name, value in asdict(options.mask).items()}
        settings.update({"--dataset": "inpaint", **masks})
    return settings


def check_same(folder: Path, recorded: Mapping[str, Any], now: Mapping[str, Any], remedy: str) -> None:
    """Raises UserError, with the name of the first setting that is not as recorded in the manifest of `folder`."""
    for name, value in now.items():
        if recorded.get(name) != value:
            raise UserError(f"{name} {_shown(value)}: {folder} was made with {_shown(recorded.get(name))}; {remedy}")


def _shown(value: Any) -> str:
    if value is None:
        return "(not given)"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
