"""Configuration files in MMEngine's form and the flags that change them.

A config is a Python file that is run, so use only files you trust: its public names become fields, with `_base_` it
inherits from other files. A flag of the command line replaces the field of its name, and changes nothing where it is
not given:

    --ckpt-path                           model.from_pretrained
    --cfg-scale, --num-sampling-steps     scheduler.cfg_scale, scheduler.num_sampling_steps
    --data-path                           dataset.data_path
    --num-frames and all others           num_frames
"""

from __future__ import annotations

import argparse
import difflib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

from mmengine.config import Config, ConfigDict

from opensora.errors import UserError
from opensora.sample.prompt_files import check_is_no_file, read_prompt_file
from opensora.utils.cli import CommandParser, check_seed, finite_float, seed, str2bool
from opensora.utils.logs import logger
from opensora.utils.numbers import finite_number

PLACES = {
    "ckpt_path": ("model", "from_pretrained"),
    "cfg_scale": ("scheduler", "cfg_scale"),
    "num_sampling_steps": ("scheduler", "num_sampling_steps"),
    "data_path": ("dataset", "data_path"),
}
# Fields that are floats; the text "1e-4" counts as one.
NUMBERS = ("lr", "grad_clip", "ema_decay", "scheduler.cfg_scale")
# Fields that no flag sets and every config may hold.
SHARED_FIELDS = (
    "model",
    "vae",
    "text_encoder",
    "scheduler",
    "dtype",
    "multi_resolution",
    "config",
    "jit_level",
    "max_device_memory",
)
INFERENCE_FIELDS = (*SHARED_FIELDS, "frame_interval", "divide_fps", "cache_dir")
TRAINING_FIELDS = (
    *SHARED_FIELDS,
    "dataset",
    "bucket_config",
    "mask_ratios",
    "num_workers",
    "num_bucket_build_workers",
    "plugin",
    "sp_size",
    "grad_checkpoint",
    "outputs",
    "epochs",
    "max_train_steps",
    "log_every",
    "ckpt_every",
    "lr",
    "grad_clip",
    "ema_decay",
    "validate",
    "gradient_accumulation_steps",
)
INFERENCE_DEFAULTS = {
    "reference_path": None,
    "loop": 1,
    "frame_interval": 1,
    "sample_name": None,
    "num_sample": 1,
    "prompt_as_path": False,
    "multi_resolution": False,
}
TRAINING_DEFAULTS = {
    "mask_ratios": None,
    "bucket_config": None,
    "start_from_scratch": False,
    "num_bucket_build_workers": 1,
    "multi_resolution": False,
}


class Flag(NamedTuple):
    """A flag of the command line; `nargs` as in argparse."""

    name: str
    type: Any
    help: str
    nargs: Union[int, str, None] = None


COMMON_FLAGS = (
    Flag("seed", seed, "of everything that is random"),
    Flag("ckpt-path", str, "weights of the model"),
    Flag("batch-size", int, "samples at a time"),
    Flag("device", str, "Ascend or CPU; default: Ascend where one is present"),
    Flag("mode", int, "0: graph mode, 1: PyNative mode"),
    Flag("use-parallel", str2bool, "join the processes that msrun started; default: where it did", "?"),
)
INFERENCE_FLAGS = (
    Flag("save-dir", str, "folder of the results"),
    Flag("sample-name", str, "what names of results begin with"),
    Flag("start-index", int, "the first prompt to take; negative: counted from the end"),
    Flag("end-index", int, "the first prompt not to take"),
    Flag("num-sample", int, "samples of each prompt"),
    Flag("prompt-as-path", str2bool, "results have their prompt's name; what is there is not made again", "?"),
    Flag("prompt-path", str, "a text file with one prompt per line, or a csv or json file of prompts"),
    Flag("prompt", str, "prompts", "+"),
    Flag("num-frames", int, "frames of a clip; 1: images"),
    Flag("fps", int, "frame rate that the model is told"),
    Flag("image-size", int, "height and width", 2),
    Flag("num-sampling-steps", int, "steps of the sampler"),
    Flag("cfg-scale", finite_float, "guidance"),
    Flag("loop", int, "clips of a long video"),
    Flag("condition-frame-length", int, "frames that a clip takes over from the one before"),
    Flag("reference-path", str, "for each prompt its images and videos, joined by `;`", "+"),
    Flag("mask-strategy", str, "for each prompt where its references stand", "+"),
    Flag("allow-local", str2bool, "URLs of references may lead to addresses that are not public; default: no", "?"),
)
TRAINING_FLAGS = (
    Flag("wandb", str2bool, "copy the curves to Weights & Biases", "?"),
    Flag("load", str, "a checkpoint to go on from"),
    Flag("data-path", str, "table of the training data"),
    Flag("start-from-scratch", str2bool, "of --load take weights and optimizer alone, and begin with epoch 0", "?"),
    Flag("allow-changed-arguments", str2bool, "resume from --load even if model, data, scheduler or seed differ", "?"),
)


def parse_configs(training: bool, argv: Optional[Sequence[str]] = None) -> ConfigDict:
    """The config that the command line names, changed by its flags; defaults filled in, prompts read.

    Fields can be reached as attributes and as items. In inference `prompt` is the list of prompts to take,
    `earlier_prompts` those before them in the whole list, and `first_index` how many those are. An unknown flag, or one
    of the other mode, ends the program with argparse's message.

    Raises:
        FileNotFoundError: no such config or prompt file.
        UserError: the config cannot be run, a flag has no place in it, or no prompts are left.
    """
    given = vars(_parser((*COMMON_FLAGS, *(TRAINING_FLAGS if training else INFERENCE_FLAGS))).parse_args(argv))
    config = read_config_file(given["config"])
    _name_misplaced(config, given["config"])
    if "prompt_path" in given and "prompt" not in given:
        config.prompt = None  # the flag wins over a list in the file
    for name, value in given.items():
        _put(config, PLACES.get(name, (name,)), value)
    for name, value in (TRAINING_DEFAULTS if training else INFERENCE_DEFAULTS).items():
        config.setdefault(name, value)
    for name, value in config.items():
        check_finite(value, f"{given['config']}: {name}")
    for name in NUMBERS:
        *parents, last = name.split(".")
        place = config.get(parents[0]) if parents else config
        if isinstance(place, Mapping) and place.get(last) is not None:
            place[last] = finite_number(place[last], f"{given['config']}: {name}")
    if config.get("seed") is None:
        config.pop("seed", None)  # the default's turn
    else:
        config.seed = check_seed(config.seed, f"{given['config']}: seed")
    _name_unused(config, field_names(training))
    if training and config.get("dataset") is not None:
        config.dataset.setdefault("transform_name", "center")
    if not training:
        _choose_prompts(config, given)
    return config


def field_names(training: bool) -> list[str]:
    """The fields that are read of a config, and flags that set part of one."""
    flags, names = (TRAINING_FLAGS, TRAINING_FIELDS) if training else (INFERENCE_FLAGS, INFERENCE_FIELDS)
    return [*(flag.name.replace("-", "_") for flag in (*COMMON_FLAGS, *flags)), *names]


def read_config_file(path: Union[str, Path]) -> ConfigDict:
    """The public fields of a config file, which is run.

    Raises:
        FileNotFoundError: no such file.
        UserError: it cannot be run.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such config file")
    try:
        fields = Config.fromfile(str(path), lazy_import=False).items()
    except Exception as error:  # whatever the user's program may do
        raise UserError(f"{path}: this config cannot be run: {type(error).__name__}: {error}") from error
    return ConfigDict(
        {name: value for name, value in fields if not name.startswith("_") and not isinstance(value, type)}
    )


def check_fields(config: Mapping, needed: Iterable[str]) -> None:
    """Raises UserError where one of the fields is missing; `model.type` is the field `type` of `model`."""
    for name in needed:
        value: Any = config
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is None:
            raise UserError(f"{config.get('config', 'the config')}: the field {name} is missing")


def check_finite(value: Any, name: str) -> None:
    """Raises UserError where a field, or a value inside of it, is NaN or infinite."""
    if isinstance(value, Mapping):
        for key, part in value.items():
            check_finite(part, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for place, part in enumerate(value):
            check_finite(part, f"{name}[{place}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} = {value}: should be a finite number")


def device_arguments(config: Mapping) -> argparse.Namespace:
    """What `opensora.device.setup` takes, from the fields of a config.

    Raises:
        UserError: an unknown dtype.
    """
    launched = "MS_WORKER_NUM" in os.environ  # by msrun
    return argparse.Namespace(
        device=config.get("device"),
        mode=config.get("mode", 1),
        precision=precision(config.get("dtype")),
        jit_level=config.get("jit_level"),
        max_device_memory=config.get("max_device_memory"),
        seed=config.get("seed", 42),
        use_parallel=config.get("use_parallel", launched),
    )


def precision(dtype: Optional[str]) -> Optional[str]:
    """A config's word for a dtype as `opensora.device` has it; None leaves the choice to the device."""
    words = {
        None: None,
        "fp32": "fp32",
        "float32": "fp32",
        "fp16": "fp16",
        "float16": "fp16",
        "half": "fp16",
        "bf16": "bf16",
        "bfloat16": "bf16",
    }
    if dtype not in words:
        raise UserError(f"dtype {dtype!r} is not one of {', '.join(word for word in words if word)}")
    return words[dtype]


def _parser(flags: Sequence[Flag]) -> argparse.ArgumentParser:
    """Flags that are not given are not in its result."""
    parser = CommandParser(
        description="Runs what a config file describes. A flag replaces a field of the config.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("config", help="a config file, such as those in configs/")
    for flag in flags:
        spellings = dict.fromkeys((f"--{flag.name}", f"--{flag.name.replace('-', '_')}"))
        always = {"const": True} if flag.type is str2bool else {}
        parser.add_argument(*spellings, type=flag.type, nargs=flag.nargs, help=_help(flag), **always)
    return parser


def _help(flag: Flag) -> str:
    return flag.help if "default:" in flag.help else f"{flag.help} (default: as in the config)"


def _put(config: ConfigDict, place: Sequence[str], value: Any) -> None:
    *parents, name = place
    for parent in parents:
        if not isinstance(config.get(parent), Mapping):
            raise UserError(f"{'.'.join(place)} = {value!r} was asked for, but the config has no {parent} = dict(...)")
        config = config[parent]
    config[name] = value


def _name_unused(config: Mapping, known: Sequence[str]) -> None:
    """A note about names that look like a field that was misspelt; others are the user's own helpers."""
    for name in config:
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
        if name not in known and close:
            logger.warning(f"nothing reads the field {name} of the config; did you mean {close[0]}?")


def _name_misplaced(config: Mapping, path: str) -> None:
    """A note about fields of parts that stand at the top of a config, where nothing reads them.

    It may be a name that helps to write the part, as in `cfg_scale = 7; scheduler = dict(cfg_scale=cfg_scale)`.
    """
    for name, (parent, field) in PLACES.items():
        part = config.get(parent)
        if config.get(name) is not None and isinstance(part, Mapping) and part.get(field) != config[name]:
            logger.warning(
                f"{path}: {name} = {config[name]!r} has no effect at the top of the config; the field that is "
                f"read is {parent}.{field}"
            )


def _choose_prompts(config: ConfigDict, given: Mapping[str, Any]) -> None:
    """Reads the prompts and takes those from `start_index` to `end_index`, with their references and strategies."""
    prompts = config.get("prompt")
    if isinstance(prompts, str):
        prompts = [prompts]
    if prompts is None:
        path = config.get("prompt_path")
        if path is None:
            raise UserError(
                "there are no prompts: give --prompt or --prompt-path, or prompt or prompt_path in the config"
            )
        prompts = read_prompt_file(str(path))
    if not isinstance(prompts, (list, tuple)) or not all(isinstance(prompt, str) for prompt in prompts):
        raise UserError(f"{given['config']}: prompt {prompts!r}: should be a list of texts")
    for prompt in prompts:
        check_is_no_file(prompt)
    start, end = config.get("start_index"), config.get("end_index")
    for name, value in (("start_index", start), ("end_index", end)):
        if value is not None and type(value) is not int:
            raise UserError(f"{given['config']}: {name} {value!r}: should be a whole number")
    first, stop, _ = slice(start, end).indices(len(prompts))
    for name in ("reference_path", "mask_strategy"):
        values = config.get(name)
        if isinstance(values, str):
            values = config[name] = [values]
        # Flags may also have entries for the chosen prompts alone; `plan_requests` compares the lengths.
        if values is not None and (name not in given or len(values) == len(prompts)):
            config[name] = list(values)[first:stop]
    config.prompt, config.earlier_prompts, config.first_index = list(prompts[first:stop]), list(prompts[:first]), first
    if not config.prompt:
        raise UserError(f"no prompts are left of {len(prompts)} from --start-index {start} to --end-index {end}")
