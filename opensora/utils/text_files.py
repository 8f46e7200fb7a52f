"""Text and csv files of users: UTF-8, with or without a byte order mark; the error for others says how to convert."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional, TextIO, Union

import yaml

from opensora.errors import UserError

LONGEST_FIELD = 1 << 24  # characters of a csv file's field


@contextmanager
def open_text(path: Union[str, Path], newline: Optional[str] = None) -> Iterator[TextIO]:
    """Opens a text file for reading; `newline` as `open` has it.

    Raises:
        OSError: it cannot be opened.
        UserError: it turns out not to be UTF-8, now or while it is read in the `with` block.
    """
    with open(path, encoding="utf-8-sig", newline=newline) as file:
        start = file.buffer.peek(4)[:4]
        if b"\0" in start or start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(_not_utf8(path, "UTF-16"))
        try:
            yield file
        except UnicodeDecodeError as error:
            raise UserError(_not_utf8(path, "GBK")) from error


def read_text(path: Union[str, Path]) -> str:
    """The whole file; raises as `open_text`."""
    with open_text(path) as file:
        return file.read()


def read_yaml(path: Union[str, Path]) -> Any:
    """The content of a yaml file.

    Raises:
        OSError: it cannot be opened.
        UserError: not UTF-8, or not yaml.
    """
    text = read_text(path)
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2024-02-31
        raise UserError(f"{path}: not a yaml file: {error or type(error).__name__}") from error


@contextmanager
def open_csv(path: Union[str, Path]) -> Iterator[csv.DictReader]:
    """Opens a csv file with a header; raises as `open_text`, and ValueError for lines that are not csv."""
    with open_text(path, newline="") as file:
        csv.field_size_limit(LONGEST_FIELD)  # of the whole process, and other packages set it, too
        rows = csv.DictReader(file)
        try:
            yield rows
        except csv.Error as error:  # a NUL character, or a field without end
            raise UserError(f"{path}: line {rows.line_num + 1}: {error}") from error


def check_characters(text: str, name: str) -> None:
    """Raises UserError, beginning with `name`, for half a surrogate pair, which no encoder or tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name}: has half of a surrogate pair, {ascii(text[error.start])}, which is no letter"
        ) from error


def _not_utf8(path: Union[str, Path], encoding: str) -> str:
    return (
        f"{path}: not UTF-8 text; convert it, if it is {encoding} for example with: "
        f"iconv -f {encoding} -t UTF-8 OLD > NEW"
    )
