"""The files that list training samples.

A data file has one source a line: `root,annotation.json`, or `root,embedding_root,annotation.json` where the captions
were embedded by sample_text_embed.py. Empty lines and lines with a # in front say nothing.
An annotation file is a json list of objects, or one object a line.
"""
from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Callable, Iterator, NamedTuple, Optional, Union

CHUNK = 1 << 20  # characters read at a time
LONGEST_ITEM = 16 * CHUNK  # a text that is still no json object after this many characters is damaged

_BETWEEN_ITEMS = re.compile(r"[\s,]*")


class Source(NamedTuple):
    """Samples that lie in one folder: their paths are relative to `root`, their embeddings' to `embedding_root`."""

    root: str
    embedding_root: Optional[str]
    annotation: Path


def read_data_file(path: Union[str, Path]) -> list[Source]:
    """The sources a data file names; annotation files are looked for where the program runs.

    Raises:
        FileNotFoundError: the data file or an annotation file is not there.
        ValueError: a line of another form, or an annotation file that is no json.
    """
    path = Path(path)
    sources = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = [part.strip() for part in line.split(",")]
        if len(parts) not in (2, 3) or not all(parts):
            raise ValueError(f"{path}, line {number}: {line.strip()!r} should be `root,annotation.json` or "
                             f"`root,embedding_root,annotation.json`")
        source = Source(parts[0], parts[1] if len(parts) == 3 else None, Path(parts[-1]))
        if source.annotation.suffix == ".pkl":
            raise ValueError(f"{path}, line {number}: {source.annotation} is a pickle, which can run code when it is "
                             f"opened; write its list as json where it was made: json.dump(pickle.load(...), ...)")
        if not source.annotation.is_file():
            raise FileNotFoundError(f"{path}, line {number}: {source.annotation}: no such file")
        sources.append(source)
    if not sources:
        raise ValueError(f"{path}: names no annotation file; a line should be `root,annotation.json`")
    return sources


def read_items(path: Union[str, Path], on_read: Callable[[int], None] = lambda size: None) -> Iterator[dict]:
    """The objects of an annotation file one by one: memory does not grow with the file.

    `on_read` is told the bytes of each piece that was read, for a progress bar.

    Raises:
        ValueError: the file is neither a json list of objects nor one object a line, or it ends too early.
    """
    decoder = json.JSONDecoder()
    with open(path, encoding="utf-8") as file:
        def more() -> str:
            before = file.buffer.tell()
            piece = file.read(CHUNK)
            on_read(file.buffer.tell() - before)
            return piece

        try:
            text = more().lstrip("\ufeff \t\r\n")
            is_list = text.startswith("[")
            position, count = int(is_list), 0
            while True:
                position = _BETWEEN_ITEMS.match(text, position).end()
                if text.startswith("]", position) and is_list:
                    return
                try:
                    item, position = decoder.raw_decode(text, position)
                except json.JSONDecodeError as error:
                    piece = more()
                    if not piece and position == len(text) and not is_list:
                        return
                    if not piece or len(text) - position > LONGEST_ITEM:
                        raise ValueError(f"{path}: after {count} objects: {error.msg}; is the file cut off or "
                                         f"no json?") from error
                    text, position = text[position:] + piece, 0
                    continue
                if not isinstance(item, dict):
                    raise ValueError(f"{path}: object {count} is {item!r:.80}; a sample should be an object with "
                                     f"`path` and `cap`")
                yield item
                count += 1
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not a text file: {error}") from error
