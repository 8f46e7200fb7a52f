"""Files of timesteps, which --timesteps reads and search_steps.py writes.

The tool writes a JSON object: the timesteps, the settings of sampling they are for, and how they were found. Other
files hold numbers alone, as a JSON list or as text with spaces, commas or lines between them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Union

from opensora.config.families import OBJECTIVE_KEYS
from opensora.errors import UserError
from opensora.utils.files import atomic_write
from opensora.utils.json_text import read_json
from opensora.utils.numbers import finite_number
from opensora.utils.text_files import read_text

# Options of sample.py that change what a timestep means, or how a sampler steps between two of them.
SETTINGS = ("sample_method", *OBJECTIVE_KEYS)


@dataclass(frozen=True)
class TimestepsFile:
    """`timesteps`: one per step; `settings`: values of SETTINGS, empty if not known; `searched`: of the search."""

    timesteps: tuple[float, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    searched: Mapping[str, Any] = field(default_factory=dict)

    def check_settings(self, options: Any, path: Union[str, Path]) -> None:
        """Raises UserError if the timesteps are for other settings than those of the options."""
        for name, value in self.settings.items():
            if value != getattr(options, name):
                raise UserError(
                    f"{path}: these timesteps are for {name} {value}, not {getattr(options, name)}; "
                    "search for those of this run with search_steps.py"
                )


def read_timesteps(path: Union[str, Path]) -> TimestepsFile:
    """The content of a file.

    Raises:
        OSError: it cannot be opened.
        UserError: it does not hold a list of numbers.
    """
    text = read_text(path)
    if text.lstrip()[:1] not in ("[", "{"):
        return TimestepsFile(_numbers(text.replace(",", " ").split(), path))
    content = read_json(path)
    if isinstance(content, list):
        return TimestepsFile(_numbers(content, path))
    if not isinstance(content.get("timesteps"), list):
        raise UserError(f"{path}: has no list of timesteps")
    searched = content.get("searched")
    return TimestepsFile(
        _numbers(content["timesteps"], path),
        {name: content[name] for name in SETTINGS if name in content},
        searched if isinstance(searched, dict) else {},
    )


def write_timesteps(path: Union[str, Path], content: TimestepsFile) -> None:
    timesteps = [int(t) if t == int(t) else t for t in content.timesteps]
    record = {**content.settings, "timesteps": timesteps, "searched": content.searched}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _numbers(values: list, path: Union[str, Path]) -> tuple[float, ...]:
    return tuple(finite_number(value, f"{path}: timestep {number}") for number, value in enumerate(values, 1))
