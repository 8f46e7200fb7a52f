"""The captions of media files: from a table, from text files beside them, or one for all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Optional, Union

from opensora.datasets.t2v.annotations import InvalidLine, read_items
from opensora.errors import UserError
from opensora.utils.numbers import is_missing
from opensora.utils.text_files import check_characters, open_csv, read_text

PATH_KEYS = ("path", "file", "video", "file_name")
CAPTION_KEYS = ("caption", "text", "cap")
TABLES = (".csv", ".json", ".jsonl")

Caption = Union[str, list[str]]


@dataclass
class Captions:
    """The captions that were found.

    Attributes:
        of: path in the folder -> a caption or a list of captions.
        missing: files without a caption, with the reason.
        unknown: paths of the table that are not among the files.
    """

    of: dict[str, Caption] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)


def find_captions(folder: Path, names: Sequence[str], table: Optional[str], default: Optional[str]) -> Captions:
    """The captions of files: those of `table`, else that of the .txt file of the same name, else `default`.

    Args:
        names: paths in `folder`.
        table: csv, json or jsonl file, or None. Several rows of one file give a list of captions.
        default: a caption, or None.

    Raises:
        OSError: a file cannot be read.
        UserError: a file that is not UTF-8; a table without the columns, with invalid rows or of other files.
    """
    listed = _read_table(folder, table) if table else {}
    known = set(names)
    found = Captions(unknown=[name for name in listed if name not in known])
    if listed and len(found.unknown) == len(listed):
        raise UserError(
            f"{table}: none of its {len(listed)} paths is a video or image in {folder}, such as "
            f"{found.unknown[0]!r:.200}; write paths relative to that folder"
        )
    for name in names:
        text_file = (folder / name).with_suffix(".txt")
        caption: Optional[Caption] = listed.get(name) or _text_beside(text_file) or default
        if caption:
            found.of[name] = caption
        else:
            is_empty = text_file.is_file()
            found.missing.append(f"{name}: no caption" + (f" ({text_file.name} is empty)" if is_empty else ""))
    return found


def _text_beside(path: Path) -> str:
    """The text of a caption file on one line; empty if there is no such file."""
    if not path.is_file():
        return ""
    text = " ".join(read_text(path).split())
    if "\0" in text:
        raise UserError(f"{path}: has a NUL character, so it is not text; replace the file or remove it")
    return text


def _read_table(folder: Path, table: str) -> dict[str, Caption]:
    """The captions of each path, in the file's order; paths are relative to `folder` if they are in it."""
    if Path(table).suffix.lower() not in TABLES:
        raise UserError(f"--captions {table}: should be a file of {', '.join(TABLES)}")
    texts: dict[str, list[str]] = {}
    rows = _csv_rows(table) if Path(table).suffix.lower() == ".csv" else _json_rows(table)
    for path, captions in rows:
        texts.setdefault(_name_in(folder, path), []).extend(captions)
    if not texts:
        raise UserError(f"{table}: has no rows")
    return {name: found[0] if len(found) == 1 else found for name, found in texts.items()}


def _csv_rows(table: str) -> Iterator[tuple[str, list[str]]]:
    with open_csv(table) as rows:
        columns = {str(name).strip().lower(): name for name in rows.fieldnames or ()}
        path_column, caption_column = (
            next((columns[name] for name in names if name in columns), None) for names in (PATH_KEYS, CAPTION_KEYS)
        )
        if path_column is None or caption_column is None:
            raise UserError(
                f"{table}: needs a column {_either(PATH_KEYS)} and a column {_either(CAPTION_KEYS)}; its first line "
                f"has {', '.join(columns)[:200] or 'none'}"
            )
        for row in rows:
            if not is_missing(row[path_column]):
                yield row[path_column], _texts(row[caption_column], f"{table}: line {rows.line_num}")


def _json_rows(table: str) -> Iterator[tuple[str, list[str]]]:
    for number, item in enumerate(read_items(table)):
        place = f"{table}: entry {number}"
        if isinstance(item, InvalidLine):
            raise UserError(f"{place}: {item.reason}; repair or delete this line")
        path, caption = (_first(item, names) for names in (PATH_KEYS, CAPTION_KEYS))
        if not isinstance(path, str) or is_missing(path):
            raise UserError(f"{place}: needs a key {_either(PATH_KEYS)} with the path of a file")
        yield path, _texts(caption, place)


def _first(item: Any, names: Sequence[str]) -> Any:
    return next((item[name] for name in names if name in item), None) if isinstance(item, Mapping) else None


def _texts(value: Any, place: str) -> list[str]:
    """The captions of a row; none if it is blank."""
    texts = value if isinstance(value, list) else [value]
    texts = [text for text in texts if not is_missing(text)]
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"{place}: the caption {text!r:.80} should be a text or a list of texts")
        check_characters(text, f"{place}: the caption")
    return texts


def _name_in(folder: Path, path: str) -> str:
    """The path relative to `folder`, without "./"; unchanged if it is outside."""
    pure = PurePosixPath(path.strip())
    for root in (folder, folder.resolve()):
        if pure.is_absolute() and PurePosixPath(root) in pure.parents:
            pure = pure.relative_to(root)
    return str(pure)


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
