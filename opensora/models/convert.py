"""Converts MindSpore checkpoints to files with the names of the PyTorch implementation."""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Union

import opensora.models
from opensora.checkpoint.convert import write_weights
from opensora.checkpoint.files import open_state, read_config
from opensora.checkpoint.shape_check import class_name
from opensora.errors import UserError
from opensora.models.pretrained import PretrainedModel

PathLike = Union[str, Path]


def convert_mindspore(
    src: PathLike, target: PathLike, config_path: PathLike, to: Optional[str] = None, format: Optional[str] = None
) -> None:
    """Converts a MindSpore checkpoint of this project to a file with all tensors of the PyTorch model.

    Only the model's parameters are converted, not those of an optimizer.

    Args:
        src: the checkpoint.
        target: the file to write.
        config_path: the model's config.json.
        to: see `opensora.checkpoint.convert.convert`.
        format: see there.

    Raises:
        FileNotFoundError, UserError, OSError: source or config cannot be used or do not match, parameters are missing,
            or the disk is full. Nothing is written then.
    """
    config = read_config(config_path)
    model_class: type[PretrainedModel] = getattr(opensora.models, class_name(config, config_path))
    state = open_state(src)
    try:
        model = model_class.without_weights(**config)
    except ValueError as error:
        raise UserError(f"{config_path}: {error}") from error
    try:
        tensors = model.select_tensors(state)
    except ValueError as error:
        raise UserError(f"{src}: {error}") from error
    write_weights(target, tensors, config, config_path, to, format)
