"""Checkpoints from one format to another, for the tools in tools/model_conversion."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Union

from opensora.checkpoint.files import open_state, read_config
from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.checkpoint.shape_check import check_shapes, class_name
from opensora.errors import UserError

PathLike = Union[str, Path]


def convert(src: PathLike, target: PathLike, config_path: PathLike, use_ema: bool = True) -> None:
    """Any readable weights -> safetensors with the same names; memory does not grow with the file.

    Every name keeps its tensor, those of tied weights too: safetensors has no second names, but readers that look for
    one find it.

    Raises:
        FileNotFoundError, UserError, OSError: before anything is written, if source or config cannot be used or
        do not belong together, or if the disk is full.
    """
    config = read_config(config_path)
    state = open_state(src, use_ema)
    check_shapes(state, src, config, config_path)
    write_safetensors(target, state, progress=True, check_finite=True)


def convert_mindspore(src: PathLike, target: PathLike, config_path: PathLike) -> None:
    """A MindSpore checkpoint of this project -> safetensors with all names PyTorch's model has.

    Takes the model's own parameters and leaves others (an optimizer's) out.

    Raises: as `convert`; ValueError if parameters of the model are missing.
    """
    config = read_config(config_path)
    name = class_name(config, config_path)
    state = open_state(src)
    model_class = getattr(importlib.import_module("opensora.models"), name)
    try:
        model = model_class.without_weights(**config)
    except ValueError as error:
        raise UserError(f"{config_path}: {error}") from error
    try:
        tensors = model.own_tensors(state)
    except ValueError as error:
        raise UserError(f"{src}: {error}") from error
    write_safetensors(target, tensors, progress=True, check_finite=True)
