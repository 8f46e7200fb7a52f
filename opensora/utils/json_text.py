"""Strict, bounded reading of untrusted json."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, Union

from opensora.errors import UserError

LONGEST_FILE = 100_000_000  # bytes
LONGEST_NUMBER = 25  # digits of an integer; Python's conversion takes quadratic time


def parse_json(data: bytes) -> Any:
    """The content of json text in UTF-8, with or without a byte order mark.

    Raises:
        UserError: invalid json, too deep nesting, duplicate keys, or numbers that are NaN, infinite or too long.
    """
    try:
        return json.loads(
            data.decode("utf-8-sig"),
            object_pairs_hook=_unique_keys,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_no_number,
        )
    except RecursionError as error:
        raise UserError("nested too deep") from error


def read_json(path: Union[str, Path]) -> Any:
    """The content of a json file.

    Raises:
        OSError: the file cannot be read.
        UserError: as `parse_json`, with the file's name; also for a file that is too large.
    """
    path = Path(path)
    size = path.stat().st_size
    if size > LONGEST_FILE:
        raise UserError(f"{path}: a json file of {size / 1e6:.0f} MB; at most {LONGEST_FILE / 1e6:.0f} MB are read")
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: not a json file ({error})") from error


def _unique_keys(pairs: list) -> dict:
    content = dict(pairs)
    if len(content) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise UserError(f"the key {counts.most_common(1)[0][0]!r:.100} comes twice")
    return content


def _integer(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise UserError(f"a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise UserError(f"the number {text:.30} is out of range")
    return value


def _no_number(text: str) -> None:
    raise UserError(f"{text} is not a number in json")
