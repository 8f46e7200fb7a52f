"""Converts checkpoints of any supported format to safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Union

from opensora.checkpoint.files import open_state, read_config
from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.checkpoint.shape_check import check_shapes

PathLike = Union[str, Path]


def convert(src: PathLike, target: PathLike, config_path: PathLike, use_ema: bool = True) -> None:
    """Converts weights of any supported format to safetensors, one tensor at a time, and keeps all names.

    Tied weights are stored once per name, since safetensors has no aliases and readers may look for either name.

    Args:
        src: the weights.
        target: the safetensors file to write.
        config_path: the model's config.json.
        use_ema: convert the EMA weights of a training checkpoint; False: the plain weights.

    Raises:
        FileNotFoundError, UserError, OSError: source or config cannot be used or do not match, or the disk is full.
            Nothing is written then.
    """
    config = read_config(config_path)
    state = open_state(src, use_ema)
    check_shapes(state, src, config, config_path)
    write_safetensors(target, state, progress=True, check_finite=True)
