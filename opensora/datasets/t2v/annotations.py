"""Reads the files that list training samples.

A data file has one source per line: `root,annotation.json`, or `root,embedding_root,annotation.json` if the captions
were embedded by sample_text_embed.py. Empty lines and lines that start with # are skipped.
An annotation file contains json objects: in a list, in several consecutive lists, or one object per line.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional, Union

from opensora.errors import UserError
from opensora.utils.text_files import open_text, read_text

CHUNK = 1 << 20  # characters read at a time
MAX_ITEM = 16 * CHUNK  # characters; a json value that is still incomplete is corrupt
MAX_DIGITS = 40  # of an integer; int() takes quadratic time, and larger numbers are invalid anyway

_BETWEEN_ITEMS = re.compile(r"[\s,]*")
_NEXT_LINE = re.compile(r"\n(?={)")


class Source(NamedTuple):
    """One annotation file; paths of samples are relative to `root`, those of embeddings to `embedding_root`."""

    root: str
    embedding_root: Optional[str]
    annotation: Path

    @property
    def embeddings(self) -> Path:
        """The folder of embeddings, which must be given."""
        assert self.embedding_root is not None, f"{self.annotation} has no embedding_root"
        return Path(self.embedding_root)


class InvalidLine(NamedTuple):
    """Replaces a line of an annotation file that is not json."""

    reason: str


def read_data_file(path: Union[str, Path]) -> list[Source]:
    """The sources listed in a data file; paths of annotation files are relative to the working directory.

    Raises:
        FileNotFoundError: the data file or an annotation file does not exist.
        UserError: an invalid line, a file that is not UTF-8, or an annotation file that is a pickle.
    """
    path = Path(path)
    sources = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [field.strip() for field in line.split(",")]
        if len(fields) not in (2, 3) or not all(fields):
            raise UserError(
                f"{path}, line {number}: {line.strip()!r:.300} should be `root,annotation.json` or "
                f"`root,embedding_root,annotation.json`"
            )
        source = Source(fields[0], fields[1] if len(fields) == 3 else None, Path(fields[-1]))
        if source.annotation.suffix == ".pkl":
            raise UserError(
                f"{path}, line {number}: {source.annotation} is a pickle, which can run code when it is "
                f"loaded; convert it to json where it was created: json.dump(pickle.load(...), ...)"
            )
        if not os.path.isfile(source.annotation):  # unlike Path.is_file, returns False for invalid names
            raise FileNotFoundError(f"{path}, line {number}: {str(source.annotation)[:300]}: no such file")
        sources.append(source)
    if not sources:
        raise UserError(f"{path}: lists no annotation file; a line should be `root,annotation.json`")
    return sources


def read_items(path: Union[str, Path], on_read: Callable[[int], None] = lambda size: None) -> Iterator[Any]:
    """Yields the entries of an annotation file; memory does not grow with the file.

    An entry may be any json value, which the caller must check. A line that is not json gives an `InvalidLine` if
    another object follows on a later line; inside a list, the start of the next entry cannot be found.

    Args:
        on_read: called with the size in bytes of each chunk read, for a progress bar.

    Raises:
        UserError: the file is not UTF-8, not json, truncated, or has other text after a list.
    """
    with open_text(path) as file:

        def more() -> str:
            before = file.buffer.tell()
            chunk = file.read(CHUNK)
            on_read(file.buffer.tell() - before)
            return chunk

        text, position, count = more(), 0, 0
        in_list = had_list = False
        while True:
            position = _skip_separators(text, position)
            if text.startswith("]" if in_list else "[", position):
                in_list, had_list, position = not in_list, True, position + 1
                continue
            try:
                item, position = _DECODER.raw_decode(text, position)
            except (json.JSONDecodeError, RecursionError) as error:
                reason = getattr(error, "msg", "nested too deeply")
                next_line = None if had_list else _NEXT_LINE.search(text, position + 1)
                if next_line:
                    item, position = InvalidLine(f"this line is not json: {reason}"), next_line.end()
                else:
                    chunk = more()
                    if not chunk and position == len(text) and not in_list:
                        return
                    if not chunk or len(text) - position > MAX_ITEM or isinstance(error, RecursionError):
                        raise UserError(
                            f"{path}: after {count} objects: {reason}; the file is truncated, is not "
                            f"json, or has other text after its list"
                        ) from error
                    text, position = text[position:] + chunk, 0
                    continue
            yield item
            count += 1


def _skip_separators(text: str, position: int) -> int:
    match = _BETWEEN_ITEMS.match(text, position)
    return match.end() if match else position


def _parse_int(digits: str) -> Union[int, float]:
    return int(digits) if len(digits) <= MAX_DIGITS else float(digits)


_DECODER = json.JSONDecoder(parse_int=_parse_int)
