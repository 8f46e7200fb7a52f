"""Config files in MMEngine's form, and the flags that override them.

A config is a Python file that is executed, so use only files you trust. Its public names become fields, and with
`_base_` it inherits from other files. A flag replaces the field of its name, and one that is not given changes nothing:

    --ckpt-path                           model.from_pretrained
    --cfg-scale, --num-sampling-steps     scheduler.cfg_scale, scheduler.num_sampling_steps
    --data-path                           dataset.data_path
    --num-frames and all others           num_frames
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

from opensora.config.command_line import CommandParser
from opensora.config.device import DeviceOptions
from opensora.config.fields import INFERENCE, SEED, TRAINING
from opensora.config.options import add_flags, check_choice, check_seed, did_you_mean, flags_of
from opensora.errors import UserError
from opensora.utils.logs import logger
from opensora.utils.numbers import finite_number

if TYPE_CHECKING:
    from mmengine.config import ConfigDict

PLACES = {
    "ckpt_path": ("model", "from_pretrained"),
    "cfg_scale": ("scheduler", "cfg_scale"),
    "num_sampling_steps": ("scheduler", "num_sampling_steps"),
    "data_path": ("dataset", "data_path"),
}
# Fields that are floats; the text "1e-4" is converted.
NUMBERS = ("lr", "grad_clip", "ema_decay", "scheduler.cfg_scale")
# Fields that are filled in with their defaults where the file does not have them.
INFERENCE_FILLED = (
    "reference_path",
    "loop",
    "frame_interval",
    "sample_name",
    "num_sample",
    "prompt_as_path",
    "multi_resolution",
)
TRAINING_FILLED = ("mask_ratios", "bucket_config", "start_from_scratch", "num_bucket_build_workers", "multi_resolution")
DTYPES = {
    "fp32": "fp32",
    "float32": "fp32",
    "fp16": "fp16",
    "float16": "fp16",
    "half": "fp16",
    "bf16": "bf16",
    "bfloat16": "bf16",
}


def parse_flags(training: bool, argv: Optional[Sequence[str]] = None) -> dict[str, Any]:
    """The flags that the command line gives, by the names of their fields, and `config`, the path of the file.

    An unknown flag, or one of the other mode, ends the program with argparse's message.
    """
    parser = CommandParser(
        description="Runs what a config file describes. A flag replaces a field of the config.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("config", help="a config file, such as those in configs/")
    add_flags(parser, *(TRAINING if training else INFERENCE), over_config=True)
    return vars(parser.parse_args(argv))


def read_config(training: bool, given: Mapping[str, Any]) -> ConfigDict:
    """The config that `given`, the result of `parse_flags`, names and overrides; defaults are filled in.

    Raises:
        FileNotFoundError: no such config.
        UserError: the config cannot be executed, a number is not finite, or a flag has no place in it.
    """
    config = read_config_file(given["config"])
    _warn_about_misplaced(config, given["config"])
    if "prompt_path" in given and "prompt" not in given:
        config.prompt = None  # the flag overrides a list in the file
    for name, value in given.items():
        _put(config, PLACES.get(name, (name,)), value)
    defaults = {flag.name: flag.default for cls in (TRAINING if training else INFERENCE) for flag in flags_of(cls)}
    for name in TRAINING_FILLED if training else INFERENCE_FILLED:
        config.setdefault(name, defaults[name])
    for name, value in config.items():
        check_finite(value, f"{given['config']}: {name}")
    for name in NUMBERS:
        *parents, last = name.split(".")
        place = config.get(parents[0]) if parents else config
        if isinstance(place, dict) and place.get(last) is not None:
            place[last] = finite_number(place[last], f"{given['config']}: {name}")
    if config.get("seed") is None:
        config.pop("seed", None)  # the default applies
    else:
        config.seed = check_seed(config.seed, f"{given['config']}: seed")
    _warn_about_unknown(config, field_names(training))
    if training and config.get("dataset") is not None:
        config.dataset.setdefault("transform_name", "center")
    return config


def field_names(training: bool) -> list[str]:
    """The fields that a config may have, and flags that set a field of a component."""
    names = (flag.name for cls in (TRAINING if training else INFERENCE) for flag in flags_of(cls))
    return list(dict.fromkeys([*names, "config"]))


def read_config_file(path: Union[str, Path]) -> ConfigDict:
    """The public fields of a config file, which is executed.

    Raises:
        FileNotFoundError: no such file.
        UserError: it cannot be executed.
    """
    from mmengine.config import Config, ConfigDict

    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such config file")
    try:
        fields = Config.fromfile(str(path), lazy_import=False).items()
    except Exception as error:  # anything the user's program may raise
        raise UserError(f"{path}: this config cannot be run: {type(error).__name__}: {error}") from error
    return ConfigDict(
        {name: value for name, value in fields if not name.startswith("_") and not isinstance(value, type)}
    )


def check_fields(config: Mapping, needed: Iterable[str]) -> None:
    """Raises UserError if one of the fields is missing; `model.type` is the field `type` of `model`."""
    for name in needed:
        value: Any = config
        for key in name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is None:
            raise UserError(f"{config.get('config', 'the config')}: the field {name} is missing")


def check_finite(value: Any, name: str) -> None:
    """Raises UserError if a field, or a value inside it, is NaN or infinite."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            check_finite(item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            check_finite(item, f"{name}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} = {value}: should be a finite number")


def device_arguments(config: Mapping) -> argparse.Namespace:
    """The arguments of `opensora.device.setup`, from the fields of a config.

    Raises:
        UserError: an unknown dtype.
    """
    launched = "MS_WORKER_NUM" in os.environ  # by msrun
    options = DeviceOptions(
        device=config.get("device"),
        mode=config.get("mode"),
        precision=precision(config.get("dtype")),
        jit_level=config.get("jit_level"),
        max_device_memory=config.get("max_device_memory"),
        seed=config.get("seed", SEED),
        use_parallel=config.get("use_parallel", launched),
    )
    return argparse.Namespace(**asdict(options))


def precision(dtype: Optional[str]) -> Optional[str]:
    """The name of a config's dtype in `opensora.device`; None leaves the choice to the device."""
    if dtype is None:
        return None
    check_choice("dtype", dtype, DTYPES)
    return DTYPES[dtype]


def _put(config: ConfigDict, place: Sequence[str], value: Any) -> None:
    *parents, name = place
    for parent in parents:
        if not isinstance(config.get(parent), Mapping):
            raise UserError(f"{'.'.join(place)} = {value!r} was asked for, but the config has no {parent} = dict(...)")
        config = config[parent]
    config[name] = value


def _warn_about_unknown(config: Mapping, known: Sequence[str]) -> None:
    """A note about names that look like a misspelled field; others are variables of the config's own program."""
    for name in config:
        hint = "" if name in known else did_you_mean(name, known, cutoff=0.8)
        if hint:
            logger.warning(f"nothing reads the field {name} of the config{hint}")


def _warn_about_misplaced(config: Mapping, path: str) -> None:
    """A note about fields of a component at the top level of a config, where nothing reads them.

    Equal values are fine: `cfg_scale = 7; scheduler = dict(cfg_scale=cfg_scale)` only uses the name.
    """
    for name, (parent, field) in PLACES.items():
        component = config.get(parent)
        if config.get(name) is not None and isinstance(component, Mapping) and component.get(field) != config[name]:
            logger.warning(
                f"{path}: {name} = {config[name]!r} has no effect at the top of the config; the field that is "
                f"read is {parent}.{field}"
            )
