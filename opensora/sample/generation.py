"""What the generation of the weights means for a run: its defaults, and which weights go together."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

from opensora.checkpoint.files import read_config, resolve_path
from opensora.config.families import NOISE_SCHEDULE_KEYS, VAES
from opensora.config.generations import LATEST, as_trained, generation_of, generation_of_autoencoder, get_generation
from opensora.errors import UserError

if TYPE_CHECKING:
    from opensora.sample.options import SampleOptions

SIZE_NAME = re.compile(r"(\d+)x(\d+)x(\d+)")  # a --version of v1.0 and v1.1: frames, height, width


def generation_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The defaults of flags that depend on the generation of the weights, and on what they were trained with.

    Raises:
        UserError: --version is neither a generation nor a size, or contradicts the weights.
        FileNotFoundError: no config.json.
    """
    given = getattr(args, "version", None)  # not a flag of every command
    path, version = folder_and_generation(args.model_path, given)
    if version == LATEST:
        return {}
    generation = as_trained(get_generation(version), read_config(path))
    is_image = getattr(args, "force_images", False) or 1 in (args.num_frames, generation.settings["num_frames"])
    settings = {"ae": generation.vae, **generation.settings_for(is_image)}
    named = SIZE_NAME.fullmatch(given or "")
    if named:
        settings.update(zip(("num_frames", "height", "width"), map(int, named.groups())))
    del settings["prediction_type"]  # a config.json may name another one
    return settings


def folder_and_generation(path: str, version: Optional[str]) -> tuple[str, str]:
    """The folder of the transformer and the name of its generation, from --model_path and --version.

    Raises:
        UserError, FileNotFoundError: see `generation_settings`.
    """
    if version is not None and SIZE_NAME.fullmatch(version):
        # In v1.0, --model_path is the folder of the release and --version the subfolder of the weights.
        folder = resolve_path(path)
        if not (folder / "config.json").is_file() and (folder / version / "config.json").is_file():
            path = str(Path(path) / version)
        version = None
    elif version is not None:
        get_generation(version)
    found = generation_of(read_config(path))
    if version is None:
        return path, found.name if found else LATEST
    if found is not None and found.name != version:
        raise UserError(
            f"--version {version} contradicts {path}, which holds weights of {found.release}; leave the flag out"
        )
    return path, version


def check_autoencoder(options: SampleOptions, transformer: Mapping[str, Any]) -> None:
    """Checks the config.json of the autoencoder.

    Args:
        transformer: config.json of the transformer.

    Raises:
        UserError: transformer and autoencoder are of different generations or have different latents, or tiles that do
            not meet.
        FileNotFoundError: no config.json.
    """
    from opensora.models import CausalVAEModel
    from opensora.models.vaes import published_vae_config

    found = generation_of_autoencoder(read_config(options.ae_path))
    if found is not None and found.name != options.generation.name:
        raise UserError(
            f"{options.model_path} holds a transformer of {options.generation.release}, {options.ae_path} an "
            f"autoencoder of {found.release}: use weights of one generation"
        )
    channels = VAES[options.ae][0]
    if transformer.get("in_channels", channels) != channels:
        raise UserError(
            f"{options.model_path} works on latents of {transformer['in_channels']} channels, "
            f"--ae {options.ae} makes {channels}"
        )
    vae = published_vae_config(options.ae, options.ae_path)
    tiling = options.tiling()
    if options.enable_tiling and tiling is not None:
        config = CausalVAEModel.config_class.from_dict(vae)
        tiling.check(config.spatial_stride, config.temporal_stride)


def check_frames(options: SampleOptions, transformer: Mapping[str, Any]) -> None:
    """Raises UserError for a number of frames that a transformer with a fixed number was not trained with."""
    length, stride = transformer.get("video_length"), VAES[options.ae][1]
    if length is not None and (options.num_frames - 1) // stride + 1 not in (1, length):
        frames = stride * (length - 1) + 1
        raise UserError(
            f"{options.model_path} makes videos of {frames} frames, or images: use --num_frames {frames} or 1, not "
            f"{options.num_frames}"
        )


def check_attention(options: SampleOptions, transformer: Mapping[str, Any]) -> None:
    """Raises UserError if --sparse1d or --sparse_n contradict the config.json of the transformer."""
    _check_recorded(options, "sparse1d", options.sparse1d or None, transformer.get("sparse1d", False))
    _check_recorded(options, "sparse_n", options.sparse_n, transformer.get("sparse_n"))


def objective_settings(options: SampleOptions, transformer: Mapping[str, Any]) -> dict[str, Any]:
    """The options that must match the training: those given, else those in config.json, else those of the generation.

    Raises:
        UserError: the given prediction type contradicts config.json.
    """
    recorded = transformer.get("prediction_type")
    _check_recorded(options, "prediction_type", options.prediction_type, recorded)
    return {
        "prediction_type": options.prediction_type or recorded or options.generation.settings["prediction_type"],
        **{name: getattr(options, name) or bool(transformer.get(name)) for name in NOISE_SCHEDULE_KEYS},
    }


def _check_recorded(options: SampleOptions, name: str, given: Any, recorded: Any) -> None:
    if given is not None and recorded is not None and given != recorded:
        raise UserError(
            f"--{name} {given} contradicts {options.model_path}/config.json, which has {recorded}: "
            f"the result would be noise; leave the flag out"
        )


def set_tiling(options: SampleOptions, vae: Any) -> None:
    """Applies --enable_tiling and --tile_overlap_factor to an autoencoder."""
    from opensora.models.vaes import enable_tiling

    enable_tiling(vae, options.enable_tiling, tiling=options.tiling())
