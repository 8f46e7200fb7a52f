"""The autoencoders by the names that `--ae` takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Optional, Union

import mindspore as ms

from opensora.checkpoint.files import read_config
from opensora.checkpoint.shape_check import check_class, published_class
from opensora.config.families import VAES
from opensora.config.options import check_choice
from opensora.errors import UserError
from opensora.models.causal_vae.model import CausalVAEModel
from opensora.models.causal_vae.tiling import Tiling
from opensora.models.wfvae.model import WFVAEModel

VAE = Union[CausalVAEModel, WFVAEModel]
CLASSES: tuple[type[VAE], ...] = (CausalVAEModel, WFVAEModel)


def vae_class(name: str) -> type[VAE]:
    """The class of the autoencoder `name`, a key of `VAES`.

    Raises:
        UserError: an unknown name.
    """
    check_choice("--ae", name, VAES)
    return next(cls for cls in CLASSES if name.startswith(cls.__name__))


def configured_class(path: Union[str, Path]) -> type[VAE]:
    """The class of the autoencoder that a config.json describes; WFVAE if it names none.

    Raises:
        FileNotFoundError: no config.json.
        UserError: it is of another model.
    """
    config = read_config(path)
    names = {cls.__name__: cls for cls in CLASSES}
    check_class(config, path, (WFVAEModel.__name__, *names))
    return names.get(published_class(config) or "", WFVAEModel)


def published_vae_config(name: str, path: Union[str, Path], flag: str = "--ae_path") -> dict:
    """The values in the config.json of the autoencoder `name`.

    Args:
        flag: the command-line flag of `path`, for errors.

    Raises:
        FileNotFoundError: no config.json.
        UserError: an unknown name, or a config.json of another class or with another latent shape.
    """
    cls = vae_class(name)
    values = cls.published_config(path, flag)
    config = cls.config_class.from_dict(values)
    found = (config.latent_dim, config.temporal_stride, config.spatial_stride)
    if found != VAES[name]:
        channels, t, s = found
        raise UserError(f"{path} holds a {cls.__name__}_D{channels}_{t}x{s}x{s}, not the {name} of --ae")
    return values


def get_vae(
    name: str, path: Union[str, Path], dtype=ms.float32, checkpoint: Optional[str] = None, weights: Optional[str] = None
) -> VAE:
    """Loads the autoencoder `name`.

    Args:
        name: a key of `VAES`.
        path: the weights and their config.json.
        dtype: the type the model computes in.
        checkpoint: a file of weights that replaces those at `path`.
        weights: how they are held, see `PretrainedModel.from_pretrained`.

    Raises:
        UserError: an unknown name, or a config.json whose latent shape does not match the name.
    """
    values = published_vae_config(name, path)
    return vae_class(name).from_pretrained(checkpoint or path, dtype=dtype, config=values, weights=weights)


def enable_tiling(vae: VAE, use_tiling: bool, overlap: Optional[float] = None, tiling: Optional[Tiling] = None) -> None:
    """Switches tiling on or off.

    Args:
        overlap: the share of a tile that the next one repeats; None: that of `tiling`. Only CausalVAE has tiles in
            space.
        tiling: the tiles of a CausalVAE; None: the published ones.

    Raises:
        UserError: tiles that do not meet, or an overlap for another model.
    """
    if isinstance(vae, CausalVAEModel):
        tiling = tiling or vae.tiling
        vae.enable_tiling(use_tiling, tiling if overlap is None else replace(tiling, tile_overlap_factor=overlap))
        return
    if overlap is not None:
        raise UserError(f"--tile_overlap_factor {overlap}: {type(vae).__name__} has no tiles in space; leave it out")
    vae.enable_tiling(use_tiling)
