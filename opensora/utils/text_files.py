"""Text and csv files of users in UTF-8, with or without a byte order mark; other encodings are an error."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional, TextIO, Union

import yaml

from opensora.errors import UserError

LONGEST_FIELD = 1 << 24  # characters of a csv field


@contextmanager
def open_text(path: Union[str, Path], newline: Optional[str] = None) -> Iterator[TextIO]:
    """Opens a text file for reading; `newline` as in `open`.

    Raises:
        OSError: the file cannot be opened.
        UserError: the file is not UTF-8; also raised while it is read in the `with` block.
    """
    with open(path, "rb") as binary:
        start = binary.peek(4)[:4]  # not read and seek: it may be a pipe
        if b"\0" in start or start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise UserError(_not_utf8(path, "UTF-16"))
        try:
            with io.TextIOWrapper(binary, encoding="utf-8-sig", newline=newline) as file:
                yield file
        except UnicodeDecodeError as error:
            raise UserError(_not_utf8(path, "GBK")) from error


def read_text(path: Union[str, Path]) -> str:
    """The content of the file; raises as `open_text`."""
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
    """Opens a csv file with a header; raises as `open_text`, and UserError for lines that are not csv."""
    with open_text(path, newline="") as file:
        csv.field_size_limit(LONGEST_FIELD)  # a setting of the process, which other packages change, too
        rows = csv.DictReader(file)
        try:
            yield rows
        except csv.Error as error:  # a NUL character, or an unterminated field
            raise UserError(f"{path}: line {rows.line_num + 1}: {error}") from error


def check_characters(text: str, name: str) -> None:
    """Raises UserError, which begins with `name`, for an unpaired surrogate: encoders and tokenizers fail on it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name}: has half of a surrogate pair, {ascii(text[error.start])}, which is not a character; remove it"
        ) from error


def _not_utf8(path: Union[str, Path], encoding: str) -> str:
    return f"{path}: not UTF-8 text; convert it, for example from {encoding}: iconv -f {encoding} -t UTF-8 OLD > NEW"
