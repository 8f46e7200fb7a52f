"""The command line of every command: its parser, its YAML file, and how it ends."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, NoReturn, Optional

from opensora.config.options import add_flags, check_choice, check_known, finite_float
from opensora.errors import UserError
from opensora.process import supervision
from opensora.process.control import rank_name
from opensora.process.signals import Stopped, handle_signals, ignore_signals
from opensora.utils import logs
from opensora.utils.text_files import read_yaml

DEBUG = "OPENSORA_DEBUG"  # environment variable; 1: a traceback for every error


class CommandParser(argparse.ArgumentParser):
    """The parser of a command: `--help` shows the default of every flag."""

    def __init__(self, **settings):
        super().__init__(**{"formatter_class": DefaultsFormatter, **settings})
        self.add_argument(
            "--log_level",
            action=_LogLevel,
            choices=logs.LEVELS,
            help=f"minimum level of log messages on stderr; default: {logs.LEVEL}, else info",
        )


class _LogLevel(argparse.Action):
    """Sets the level while parsing and stores no value, so that checkpoints do not record it as an argument."""

    def __init__(self, option_strings, dest, **settings):
        super().__init__(option_strings, argparse.SUPPRESS, **{**settings, "default": argparse.SUPPRESS})

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        logs.configure(values)


def parse_flags(
    description: str,
    classes: Iterable[type],
    argv: Optional[Sequence[str]] = None,
    yaml_file: bool = False,
    defaults: Optional[Callable[[argparse.Namespace], Mapping[str, Any]]] = None,
) -> argparse.Namespace:
    """The parsed flags of a command, which are the options of these classes.

    Args:
        yaml_file: the command accepts `--config FILE.yaml`, see `parse_with_config`.
        defaults: called with the parsed flags, returns defaults that depend on them and that replace those of the
            options. Flags that were given, on the command line or in the file, stay.
    """

    def parse(changed: Mapping[str, Any]) -> argparse.Namespace:
        parser = CommandParser(description=description)
        add_flags(parser, *classes)
        parser.set_defaults(**changed)
        return parse_with_config(parser, argv) if yaml_file else parser.parse_args(argv)

    args = parse({})
    return parse(defaults(args)) if defaults else args


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


def parse_with_config(parser: argparse.ArgumentParser, argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Parses the command line. `--config FILE.yaml` changes the defaults, and flags override the file.

    Raises:
        UserError: the file is not a mapping, or has a key or value that is not one of the command's flags.
    """
    parser.register("type", float, finite_float)  # flags declared with type=float
    parser.add_argument("--config", help="YAML file with values for these flags, which override it")
    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--config")
    path = first.parse_known_args(argv)[0].config
    if path:
        _apply_config(parser, Path(path))
    return parser.parse_args(argv)


def _apply_config(parser: argparse.ArgumentParser, path: Path) -> None:
    values = read_yaml(path) or {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: should hold `flag: value` lines")
    actions = {
        action.dest: action for action in parser._actions if action.dest not in ("help", "config", argparse.SUPPRESS)
    }
    check_known(values, actions, str(path))
    for key, value in values.items():
        actions[key].required = False
        convert = parser._registry_get("type", actions[key].type, actions[key].type) or str
        parser.set_defaults(**{key: _config_value(actions[key], convert, value, f"{path}: {key}:")})


def _config_value(action: argparse.Action, convert: Callable, value: Any, name: str) -> Any:
    """A value from YAML as the flag itself would have parsed it; `convert` is the type of the flag."""
    if value is None:
        return None
    if action.nargs == 0:  # a switch
        if not isinstance(value, bool):
            raise UserError(f"{name} {value!r} should be true or false")
        return value
    several = action.nargs in ("+", "*") or isinstance(action.nargs, int)
    try:
        if several:
            parsed = [convert(str(item)) for item in (value if isinstance(value, list) else [value])]
        else:
            parsed = convert(str(value))
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise UserError(f"{name} {value!r:.100}: {error!s:.300}") from error
    if isinstance(action.nargs, int) and len(parsed) != action.nargs:
        raise UserError(f"{name} {value!r:.100}: should be a list of {action.nargs}")
    if action.choices is not None:
        for item in parsed if several else [parsed]:
            check_choice(name, item, tuple(action.choices))
    return parsed


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
    """The start of an error message. From the logs of failed processes msrun shows lines that contain ERROR."""
    return f"ERROR in {rank_name()}" if "MS_ROLE" in os.environ else "error"
