"""Checkpoints from one format to another, for the tools in tools/model_conversion."""
from __future__ import annotations

from pathlib import Path
from typing import Union

from opensora.models.checkpoint_files import open_state, read_config
from opensora.models.known_shapes import check_shapes
from opensora.models.safetensors_file import ArrayTensor, write_safetensors

PathLike = Union[str, Path]


def convert(src: PathLike, target: PathLike, config_path: PathLike, use_ema: bool = True) -> None:
    """Any readable weights -> safetensors with the same names; memory does not grow with the file.

    Raises:
        FileNotFoundError, ValueError, OSError: before anything is written, if source or config cannot be used or
        do not belong together, or if the disk is full.
    """
    config = read_config(config_path)
    state = open_state(src, use_ema)
    check_shapes(state, config, config_path)
    _check_target(target)
    write_safetensors(target, state, progress=True)


def convert_mindspore(src: PathLike, target: PathLike, config_path: PathLike) -> None:
    """A MindSpore checkpoint of this project -> safetensors with all names PyTorch's model has.

    Takes the model's own parameters and leaves others (an optimizer's) out.

    Raises: as `convert`; ValueError if parameters of the model are missing.
    """
    from mindspore.nn.utils import no_init_parameters
    import opensora.models as models
    config = read_config(config_path)
    state = open_state(src)
    name = config.get("_class_name") or {"mt5": "MT5EncoderModel", "t5": "MT5EncoderModel"}.get(config.get("model_type"))
    if name not in models.MODELS:
        raise ValueError(f"{config_path}: the config of a {name!r}; known are {', '.join(models.MODELS)}")
    with no_init_parameters():
        model = getattr(models, name)(**config)
    names = [parameter for parameter, _ in model.parameters_and_names()]
    missing = [parameter for parameter in names if parameter not in state]
    if missing:
        raise ValueError(f"{src}: {len(missing)} parameters of {name} are missing ({', '.join(missing[:3])} ...)")
    _check_target(target)
    constants = {key: ArrayTensor(value) for key, value in model.constants().items()}
    write_safetensors(target, {**{key: state[key] for key in names}, **constants}, progress=True)


def _check_target(target: PathLike) -> None:
    if Path(target).suffix != ".safetensors":
        raise ValueError(f"--target {target}: the name should end in .safetensors")
