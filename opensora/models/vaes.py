"""The autoencoders by the names that `--ae` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Union

import mindspore as ms

from opensora.config.families import VAES
from opensora.config.options import check_choice
from opensora.errors import UserError
from opensora.models.wfvae.config import WFVAEConfig
from opensora.models.wfvae.model import WFVAEModel


def get_vae(
    name: str, path: Union[str, Path], dtype=ms.float32, checkpoint: Optional[str] = None, weights: Optional[str] = None
) -> WFVAEModel:
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
    check_choice("--ae", name, VAES)
    values = WFVAEModel.published_config(path)
    config = WFVAEConfig.from_dict(values)
    found = (config.latent_dim, config.temporal_stride, config.spatial_stride)
    if found != VAES[name]:
        channels, t, s = found
        raise UserError(f"{path} holds a WFVAEModel_D{channels}_{t}x{s}x{s}, not the {name} of --ae")
    return WFVAEModel.from_pretrained(checkpoint or path, dtype=dtype, config=values, weights=weights)
