"""What every command-line entry point shares."""

from __future__ import annotations

import argparse
import difflib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Callable, NoReturn, Optional

from opensora.errors import UserError
from opensora.utils import logs, supervision
from opensora.utils.numbers import finite_number, whole_number
from opensora.utils.stopping import Stopped, handle_signals, ignore_signals
from opensora.utils.text_files import read_yaml

DEBUG = "OPENSORA_DEBUG"  # environment variable; 1: a traceback for every error
LARGEST_SEED = 2**32 - 1  # of numpy.random.RandomState and mindspore.set_seed


def str2bool(text: str) -> bool:
    """`True`, `true`, `1`, `yes` and their opposites, as people write them on a command line."""
    lowered = text.strip().lower()
    if lowered in ("true", "1", "yes", "y", "on"):
        return True
    if lowered in ("false", "0", "no", "n", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def finite_float(text: str) -> float:
    """A number of a flag; `nan`, `inf` and 1e999, which float() takes, are refused."""
    try:
        return finite_number(text, "value", -sys.float_info.max, sys.float_info.max)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} should be a finite number") from error


class CommandParser(argparse.ArgumentParser):
    """The parser of a command: `--help` shows the default of every flag."""

    def __init__(self, **settings):
        super().__init__(**{"formatter_class": DefaultsFormatter, **settings})
        self.add_argument(
            "--log_level",
            action=_LogLevel,
            choices=logs.LEVELS,
            help=f"least level of the log on stderr; default: {logs.LEVEL}, else info",
        )


class _LogLevel(argparse.Action):
    """Takes effect at once and leaves no value, because it is no argument of the work that checkpoints record."""

    def __init__(self, option_strings, dest, **settings):
        super().__init__(option_strings, argparse.SUPPRESS, **{**settings, "default": argparse.SUPPRESS})

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        logs.configure(values)


class DefaultsFormatter(argparse.RawDescriptionHelpFormatter):
    """Adds the default to a flag's text, unless the flag is required or its text says the default itself."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if not action.option_strings or action.required or action.default is argparse.SUPPRESS or "default:" in text:
            return text
        if action.default is None:
            return f"{text} (default: none)"
        if isinstance(action.default, bool):
            return f"{text} (default: {'on' if action.default else 'off'})"
        if isinstance(action.default, (list, tuple)):
            values = " ".join(map(str, action.default)).replace("%", "%%")
            return f"{text} (default: {values})"
        return f"{text} (default: %(default)s)"


def check_seed(value: Any, name: str) -> int:
    """`value` as a seed, in the range that numpy and MindSpore take; ValueError, with `name`, for anything else."""
    try:
        return whole_number(value, name, 0, LARGEST_SEED)
    except ValueError as error:
        raise UserError(f"{name} {str(value)[:60]!r}: should be a whole number from 0 to {LARGEST_SEED}") from error


def seed(text: str) -> int:
    """The type of flags that are seeds."""
    try:
        return check_seed(text, "seed")
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def parse_with_config(parser: argparse.ArgumentParser, argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parses the command line; `--config FILE.yaml` changes the defaults, and flags win over the file.

    Raises:
        UserError: the file is no mapping, or has a key or value that is none of the command's flags.
    """
    parser.register("type", float, finite_float)  # flags declared with type=float
    parser.add_argument("--config", help="yaml file with values for these flags; the command line wins over it")
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--config")
    path = first.parse_known_args(argv)[0].config
    if path:
        _apply_config(parser, Path(path))
    return parser.parse_args(argv)


def with_article(name: str) -> str:
    """The name of a class as messages say it: an OpenSoraT2V_v1_3, a WFVAEModel, an STDiT2."""
    return f"{'an' if name.startswith(('A', 'E', 'I', 'O', 'U', 'ST', 'MT', 'mt')) else 'a'} {name}"


def pick(options: type, args: argparse.Namespace, **given):
    """The dataclass `options`, its fields from flags of the same names, or as given."""
    values = {field.name: getattr(args, field.name) for field in fields(options) if hasattr(args, field.name)}
    return options(**{**values, **given})


def _apply_config(parser: argparse.ArgumentParser, path: Path) -> None:
    values = read_yaml(path) or {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: should hold `flag: value` lines")
    actions = {
        action.dest: action for action in parser._actions if action.dest not in ("help", "config", argparse.SUPPRESS)
    }
    for key, value in values.items():
        if key not in actions:
            close = difflib.get_close_matches(str(key), actions, n=3)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise UserError(f"{path}: unknown key {key!r:.100}{hint}")
        actions[key].required = False
        convert = parser._registry_get("type", actions[key].type, actions[key].type) or str
        parser.set_defaults(**{key: _config_value(actions[key], convert, value, f"{path}: {key}: {value!r:.100}")})


def _config_value(action: argparse.Action, convert: Callable, value, place: str):
    """A value from yaml as the flag itself would have parsed it; `convert` is the type of the flag."""
    if value is None:
        return None
    if action.nargs == 0:  # a switch
        if not isinstance(value, bool):
            raise UserError(f"{place} should be true or false")
        return value
    several = action.nargs in ("+", "*") or isinstance(action.nargs, int)
    try:
        if several:
            value = [convert(str(item)) for item in (value if isinstance(value, list) else [value])]
        else:
            value = convert(str(value))
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise UserError(f"{place}: {error!s:.300}") from error
    if several:
        if isinstance(action.nargs, int) and len(value) != action.nargs:
            raise UserError(f"{place}: should be a list of {action.nargs}")
        return value
    if action.choices is not None and value not in action.choices:
        raise UserError(f"{place} is not one of {', '.join(map(str, action.choices))}")
    return value


def run_main(main: Callable[[], None]) -> None:
    """Runs `main`. Prints an error of the user, of a file, a disk or a socket as one line on stderr.

    Every other exception is a bug of this program and keeps its traceback. With `OPENSORA_DEBUG=1` in the environment
    all errors have one.

    The exit status is 0, 1 for an error, and 128 and the signal's number for a command that a signal ended.
    """
    handle_signals()
    logs.configure()
    try:
        main()
        supervision.report_success()
    except (UserError, OSError) as error:
        if os.environ.get(DEBUG, "0") != "0":
            traceback.print_exc()
        _end(1, f"{_error_prefix()}: {_one_line(error)}")
    except Stopped as stopped:
        _end(stopped.exit_status, str(stopped))
    except KeyboardInterrupt:
        _end(128 + signal.SIGINT, "stopped")


def _end(status: int, message: str) -> NoReturn:
    ignore_signals()
    print(message, file=sys.stderr, flush=True)
    supervision.report_status(status)
    sys.exit(status)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"  # Python's own text begins with the number of the error
    return " ".join(str(error).split())


def _error_prefix() -> str:
    """Of the logs of failed processes msrun shows the lines with ERROR in capitals."""
    return f"ERROR in {supervision.rank_name()}" if "MS_ROLE" in os.environ else "error"
