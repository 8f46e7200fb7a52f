"""The files that list training samples.

A data file has one source per line: `root,annotation.json`, or `root,embedding_root,annotation.json` where the captions
were embedded by sample_text_embed.py. Empty lines and lines that start with # are skipped.
An annotation file holds json objects: in a list, in several lists one after the other, or one object per line.
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
LONGEST_ITEM = 16 * CHUNK  # a text that is still no json value after this many characters is damaged
MOST_DIGITS = 40  # of a whole number; int() takes quadratic time, and such a number is refused anyway

_BETWEEN_ITEMS = re.compile(r"[\s,]*")
_NEXT_LINE = re.compile(r"\n(?={)")


class Source(NamedTuple):
    """Samples that lie in one folder: their paths are relative to `root`, their embeddings' to `embedding_root`."""

    root: str
    embedding_root: Optional[str]
    annotation: Path


class Damaged(NamedTuple):
    """Stands for a line of an annotation file that is not json."""

    reason: str


def read_data_file(path: Union[str, Path]) -> list[Source]:
    """The sources a data file names; annotation files are looked for where the program runs.

    Raises:
        FileNotFoundError: the data file or an annotation file is not there.
        UserError: a line of another form, a file that is not UTF-8, or an annotation file that is no json.
    """
    path = Path(path)
    sources = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = [part.strip() for part in line.split(",")]
        if len(parts) not in (2, 3) or not all(parts):
            raise UserError(
                f"{path}, line {number}: {line.strip()!r:.300} should be `root,annotation.json` or "
                f"`root,embedding_root,annotation.json`"
            )
        source = Source(parts[0], parts[1] if len(parts) == 3 else None, Path(parts[-1]))
        if source.annotation.suffix == ".pkl":
            raise UserError(
                f"{path}, line {number}: {source.annotation} is a pickle, which can run code when it is "
                f"opened; write its list as json where it was made: json.dump(pickle.load(...), ...)"
            )
        if not os.path.isfile(source.annotation):  # unlike Path's, false for names no file can have
            raise FileNotFoundError(f"{path}, line {number}: {str(source.annotation)[:300]}: no such file")
        sources.append(source)
    if not sources:
        raise UserError(f"{path}: names no annotation file; a line should be `root,annotation.json`")
    return sources


def read_items(path: Union[str, Path], on_read: Callable[[int], None] = lambda size: None) -> Iterator[Any]:
    """The entries of an annotation file one by one: memory does not grow with the file.

    An entry may be any json value, for the caller to check. A line that is not json is a `Damaged` entry if another
    object follows on a later line; inside a list there is no telling where the next entry begins.
    `on_read` is told the bytes of each piece that was read, for a progress bar.

    Raises:
        UserError: the file is not UTF-8, not json, has something else behind a list, or ends too early.
    """
    with open_text(path) as file:

        def more() -> str:
            before = file.buffer.tell()
            piece = file.read(CHUNK)
            on_read(file.buffer.tell() - before)
            return piece

        text, position, count = more(), 0, 0
        in_list = had_list = False
        while True:
            position = _BETWEEN_ITEMS.match(text, position).end()
            if text.startswith("]" if in_list else "[", position):
                in_list, had_list, position = not in_list, True, position + 1
                continue
            try:
                item, position = _DECODER.raw_decode(text, position)
            except (json.JSONDecodeError, RecursionError) as error:
                reason = getattr(error, "msg", "nested too deeply")
                next_line = None if had_list else _NEXT_LINE.search(text, position + 1)
                if next_line:
                    item, position = Damaged(f"this line is not json: {reason}"), next_line.end()
                else:
                    piece = more()
                    if not piece and position == len(text) and not in_list:
                        return
                    if not piece or len(text) - position > LONGEST_ITEM or isinstance(error, RecursionError):
                        raise UserError(
                            f"{path}: after {count} objects: {reason}; is the file cut off or no json, or "
                            f"does something else follow its list?"
                        ) from error
                    text, position = text[position:] + piece, 0
                    continue
            yield item
            count += 1


def _parse_int(digits: str) -> Union[int, float]:
    return int(digits) if len(digits) <= MOST_DIGITS else float(digits)


_DECODER = json.JSONDecoder(parse_int=_parse_int)
