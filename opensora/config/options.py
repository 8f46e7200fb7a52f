"""Options: a field of a dataclass carries its default, help text, choices and flag names, once.

    @dataclass(frozen=True)
    class SampleOptions:
        height: int = option(352, "frame height in pixels, a multiple of 32")

`add_flags` derives argparse flags from the fields, `from_mapping` builds the dataclass from parsed flags, a YAML file
or a config file, and `flag_table` documents the fields. Imports nothing heavy, so that `--help` is fast.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from types import SimpleNamespace
from typing import Any, Callable, NamedTuple, Optional, TypeVar, Union, get_args, get_origin, get_type_hints

from opensora.errors import UserError
from opensora.utils.numbers import finite_number, whole_number

LARGEST_SEED = 2**32 - 1  # of numpy.random.RandomState and mindspore.set_seed
T = TypeVar("T")


class Option(NamedTuple):
    """The metadata of a field that is an option."""

    help: str = ""
    flags: Sequence[str] = ()  # further spellings, such as "-i" or "--learning_rate"
    choices: Optional[Collection] = None
    type: Optional[Callable[[str], Any]] = None  # converts the text of the flag; None: by the annotation
    nargs: Union[int, str, None] = None  # as in argparse; None: by the annotation, `Sequence[str]` takes one or more
    metavar: Optional[str] = None
    group: Optional[str] = None  # title of the section in `--help`; None: the class attribute `group`
    name: Optional[str] = None  # name of the flag where it is not that of the field
    takes_value: bool = False  # a bool may be followed by True or False; otherwise the flag alone switches it on
    positional: bool = False
    exclusive: bool = False  # at most one of the exclusive options of a section may be given
    flag: bool = True  # False: a field of config files that the command line does not have


def option(default: Any = dataclasses.MISSING, help: str = "", **settings: Any) -> Any:
    """A dataclass field that is also a command-line flag `--NAME`, required if it has no default.

    Args:
        settings: see `Option`.
    """
    return dataclasses.field(default=default, metadata={"option": Option(help, **settings)})


def option_of(cls: type, name: str, default: Any = dataclasses.MISSING, **changes: Any) -> Any:
    """The option `name` of another class, with another default or other arguments of `option`."""
    field: dataclasses.Field = {field.name: field for field in dataclasses.fields(cls)}[name]
    return dataclasses.field(
        default=field.default if default is dataclasses.MISSING else default,
        metadata={"option": field.metadata["option"]._replace(**changes)},
    )


class Flag(NamedTuple):
    """A field that is an option, with its type resolved."""

    name: str  # of the argparse destination
    default: Any
    option: Option
    type: Any
    nargs: Union[int, str, None]

    @property
    def spellings(self) -> list[str]:
        if self.option.positional:
            return [self.name]
        short = [flag for flag in self.option.flags if not flag.startswith("--")]
        return [*short, f"--{self.name}", *(flag for flag in self.option.flags if flag.startswith("--"))]

    @property
    def is_switch(self) -> bool:
        return self.type is bool and self.option.type is None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `add_argument`."""
        settings: dict[str, Any] = {"help": self.option.help}
        if self.is_switch and not self.option.takes_value:
            return {**settings, "action": "store_true"}
        if self.is_switch:
            settings.update(type=str2bool, nargs="?", const=True)
        else:
            settings.update(type=self.option.type or CONVERTERS.get(self.type, self.type), nargs=self.nargs)
        if self.option.choices is not None:
            settings["choices"] = tuple(self.option.choices)
        if self.option.metavar is not None:
            settings["metavar"] = self.option.metavar
        if self.default is not dataclasses.MISSING:
            settings["default"] = self.default
        elif not self.option.positional:
            settings["required"] = True
        return settings


def flags_of(cls: type) -> Iterator[Flag]:
    """The options of a class."""
    for field in dataclasses.fields(cls):
        found: Optional[Option] = field.metadata.get("option")
        if found is not None:
            kind, nargs = _value_type(_annotation(cls, field.name))
            found = found._replace(group=found.group or getattr(cls, "group", None))
            yield Flag(found.name or field.name, field.default, found, kind, found.nargs or nargs)


def add_flags(parser: argparse.ArgumentParser, *classes: type, over_config: bool = False) -> None:
    """Adds a flag for each option of the classes; an option that an earlier class has too is added once.

    Args:
        over_config: the flags override fields of a config file. None is required, one that is not given is absent from
            the result, and dashes and underscores are the same.
    """
    groups: dict[Optional[str], Any] = {None: parser, **{group.title: group for group in parser._action_groups}}
    exclusive: dict[Optional[str], Any] = {}
    for flag in (flag for cls in classes for flag in flags_of(cls)):
        if not flag.option.flag or any(name in parser._option_string_actions for name in flag.spellings):
            continue
        spellings, settings = flag.spellings, flag.arguments()
        if over_config:
            spellings = list(dict.fromkeys(name.replace("_", "-") for name in spellings) | dict.fromkeys(spellings))
            settings = {**settings, "default": argparse.SUPPRESS, "required": False}
            if "default:" not in settings["help"]:
                settings["help"] += " (default: as in the config)"
        title = flag.option.group
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        target = groups[title]
        if flag.option.exclusive:
            target = exclusive[title] = exclusive.get(title) or target.add_mutually_exclusive_group()
        target.add_argument(*spellings, **settings)


def from_mapping(cls: type[T], values: Mapping[str, Any], where: Optional[str] = None, **given: Any) -> T:
    """An instance of the option class from values by the names of its options or fields.

    Args:
        values: options that it does not have keep their defaults.
        where: name of the source of the values; all of them must then be options of the class. Without it the values
            may be those of several classes, as those of a command line are.
        given: fields that are taken as they are, in place of those of `values`.

    Raises:
        UserError: an unknown or missing option, or whatever the class refuses.
    """
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    if where is not None:
        check_known(values, [field.name for field in fields], where)
    arguments = dict(given)
    for field in fields:
        found: Optional[Option] = field.metadata.get("option")
        names = [name for name in (found and found.name, field.name) if name in values]
        if field.name in given:
            continue
        if names:
            arguments[field.name] = values[names[0]]  # type: ignore[index]
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{where or cls.__name__}: the field {field.name} is missing")
    return cls(**arguments)


def flag_table(*classes: type, without: Collection[type] = ()) -> str:
    """The flags of the classes as a Markdown table, without those of other classes. The first of a name counts."""
    left_out = {flag.name for cls in without for flag in flags_of(cls)}
    flags: dict[str, Flag] = {}
    for flag in (flag for cls in classes for flag in flags_of(cls) if flag.option.flag and flag.name not in left_out):
        flags.setdefault(flag.name, flag)
    rows = [
        f"| {', '.join(f'`{name}`' for name in flag.spellings)} | {_shown_default(flag)} | {describe(flag)} |"
        for flag in flags.values()
    ]
    return "\n".join(["| flag | default | meaning |", "|---|---|---|", *rows])


def field_table(*classes: type) -> str:
    """The fields of a config file as a Markdown table."""
    rows = [
        f"| `{flag.name}` | {_shown_default(flag)} | {describe(flag)} |" for cls in classes for flag in flags_of(cls)
    ]
    return "\n".join(["| field | default | meaning |", "|---|---|---|", *rows])


def override_table(places: Mapping[str, Sequence[str]], *classes: type) -> str:
    """The flags that override fields of a config file as a Markdown table; `places` has those of another name."""
    rows = [
        f"| `--{flag.name.replace('_', '-')}` | `{'.'.join(places.get(flag.name, (flag.name,)))}` | {describe(flag)} |"
        for cls in classes
        for flag in flags_of(cls)
        if flag.option.flag
    ]
    return "\n".join(["| flag | field | meaning |", "|---|---|---|", *rows])


def describe(flag: Flag) -> str:
    """The help text with the choices, for a Markdown table."""
    text = flag.option.help.replace("%%", "%").replace("|", "\\|")
    if flag.option.choices is None or (flag.option.type is None and flag.type is int):
        return text
    return f"{text} ({', '.join(f'`{choice}`' for choice in flag.option.choices)})"


def _shown_default(flag: Flag) -> str:
    if flag.default is dataclasses.MISSING:
        return "required"
    if flag.default is None:
        return ""
    if isinstance(flag.default, bool):
        return "on" if flag.default else "off"
    value = " ".join(map(str, flag.default)) if isinstance(flag.default, (list, tuple)) else str(flag.default)
    return f"`{' '.join(value.split())}`" if value.strip() else "empty"


def did_you_mean(name: Any, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A question about the closest known name, or an empty text."""
    close = get_close_matches(str(name), list(known), n=1, cutoff=cutoff)
    return f" (did you mean {close[0]}?)" if close else ""


def check_known(names: Iterable[Any], known: Collection[str], where: str) -> None:
    """Raises UserError for the first name that is not known."""
    for name in names:
        if name not in known:
            hint = did_you_mean(name, known) or f"; its fields are {', '.join(known)}"
            raise UserError(f"{where} has no field {name!r}{hint}")


def check_choice(name: str, value: Any, choices: Collection) -> None:
    """Raises UserError unless `value` is one of the choices; None among them means that the option may be missing."""
    if value not in choices:
        known = ", ".join(str(choice) for choice in choices if choice is not None)
        raise UserError(f"{name} {value!r} is not one of {known}")


def check_at_least_one(options: Any, *names: str, prefix: str = "--") -> None:
    """Raises UserError unless each of these numbers, fields of `options`, is None or at least 1."""
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"{prefix}{name} must be 1 or more, not {value}")


def str2bool(text: str) -> bool:
    """`True`, `true`, `1`, `yes` and their opposites."""
    lowered = text.strip().lower()
    if lowered in ("true", "1", "yes", "y", "on"):
        return True
    if lowered in ("false", "0", "no", "n", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def finite_float(text: str) -> float:
    """The number of a flag; `nan`, `inf` and 1e999, which float() accepts, are refused."""
    try:
        return finite_number(text, "value", -sys.float_info.max, sys.float_info.max)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} should be a finite number") from error


def check_seed(value: Any, name: str) -> int:
    """`value` as a seed, in the range that numpy and MindSpore accept; UserError, with `name`, for anything else."""
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


CONVERTERS: dict[Any, Callable[[str], Any]] = {float: finite_float}


def _annotation(cls: type, name: str) -> Any:
    """The type of a field. Those of other fields may be names that only type checkers import."""
    owner = next(base for base in cls.__mro__ if name in base.__dict__.get("__annotations__", {}))
    holder: Any = SimpleNamespace(__annotations__={name: owner.__annotations__[name]})
    return get_type_hints(holder, vars(sys.modules[owner.__module__]))[name]


def _value_type(hint: Any) -> tuple[Any, Union[int, str, None]]:
    """The type of one value of a flag, and how many it takes (None: one)."""
    arguments = [kind for kind in get_args(hint) if kind is not type(None)]
    if get_origin(hint) is Union:
        return _value_type(arguments[0])
    if get_origin(hint) is tuple and Ellipsis not in arguments:
        return arguments[0], len(arguments)
    if get_origin(hint) is not None and arguments:
        return arguments[0], "+"
    return hint, None
