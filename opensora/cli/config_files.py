"""The command lines of scripts/inference.py, inference-long.py and train.py: a config file, flags and prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Optional

from opensora.config.mmengine import parse_flags, read_config
from opensora.errors import UserError

if TYPE_CHECKING:
    from mmengine.config import ConfigDict


def parse_configs(training: bool, argv: Optional[Sequence[str]] = None) -> ConfigDict:
    """The config that the command line names, overridden by its flags; defaults filled in, prompts read.

    Fields are attributes and items. In inference `prompt` is the list of the chosen prompts, `earlier_prompts` those
    before them in the whole list, and `first_index` their number. An unknown flag, or one of the other mode, ends the
    program with argparse's message.

    Raises:
        FileNotFoundError: no such config or prompt file.
        UserError: the config cannot be executed, a flag has no place in it, or no prompts are left.
    """
    given = parse_flags(training, argv)
    config = read_config(training, given)
    if not training:
        _choose_prompts(config, given)
    return config


def _choose_prompts(config: ConfigDict, given: Mapping[str, Any]) -> None:
    """Reads the prompts and keeps those from `start_index` to `end_index`, with their references and strategies."""
    from opensora.sample.prompt_files import check_is_no_file, read_prompt_file  # imports the video reader

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
