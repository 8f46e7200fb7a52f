"""Base of the models' configurations: the fields are the keys of the published config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

from opensora.config.options import did_you_mean
from opensora.errors import UserError

ConfigT = TypeVar("ConfigT", bound="ModelConfig")


@dataclass(frozen=True)
class ModelConfig:
    """Base of model configurations: the fields are the keys of the published config.json.

    `ignored` lists published keys without effect here; keys that start with an underscore are metadata.
    """

    ignored: ClassVar[tuple] = ()

    @classmethod
    def from_dict(cls: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
        """The configuration with these values; numbers and booleans may be strings.

        Raises:
            UserError: an unknown key, or a value of the wrong type.
        """
        known = [field.name for field in fields(cls)]
        types = get_type_hints(cls)
        kept = {key: value for key, value in values.items() if not key.startswith("_") and key not in cls.ignored}
        for key in kept:
            if key not in known:
                raise UserError(f"{cls.__name__} has no key {key!r:.100}{did_you_mean(key, known)}")
            try:
                kept[key] = _as_type(kept[key], types[key])
            except (TypeError, ValueError) as error:
                raise UserError(f"{cls.__name__}: {key} {kept[key]!r:.60} is not {_type_name(types[key])}") from error
        return cls(**kept)

    def to_dict(self) -> dict[str, Any]:
        """The values that are not None, by key."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def _as_type(value: Any, kind: Any) -> Any:
    """Converts a value of a config.json to the type of its field. Raises TypeError or ValueError if it cannot."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Union:
        for choice in arguments:
            try:
                return _as_type(value, choice)
            except (TypeError, ValueError):
                pass
    elif origin is Sequence:
        if isinstance(value, (list, tuple)):
            return type(value)(_as_type(item, arguments[0]) for item in value)
    elif kind is bool or isinstance(value, bool):
        if kind is bool and isinstance(value, (bool, str)):
            return {"true": True, "false": False}[str(value).lower()] if isinstance(value, str) else value
    elif kind is int:
        if int(value) == float(value):
            return int(value)
    elif kind is float:
        if math.isfinite(float(value)):
            return float(value) if isinstance(value, str) else value
    elif isinstance(value, kind):
        return value
    raise TypeError(f"not {kind}")


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Union:
        return " or ".join(_type_name(choice) for choice in get_args(kind))
    if get_origin(kind) is Sequence:
        return f"a list in which each item is {_type_name(get_args(kind)[0])}"
    return {int: "an integer", float: "a finite number", bool: "true or false", str: "a string"}.get(kind, "null")
