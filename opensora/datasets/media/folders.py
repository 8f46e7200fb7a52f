"""Lists the videos and images of a folder, or the videos of a csv file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Union

from opensora.datasets.media import VIDEO_SUFFIXES
from opensora.errors import UserError
from opensora.utils.text_files import open_csv


def list_videos(folder: Union[str, Path], recursive: bool = False) -> list[Path]:
    """The videos in a folder, sorted by name; raises as `list_media`."""
    return list_media(folder, {"videos": VIDEO_SUFFIXES}, recursive)


def list_media(folder: Union[str, Path], kinds: Mapping[str, Sequence[str]], recursive: bool = False) -> list[Path]:
    """The files of some kinds in a folder, sorted by name.

    Args:
        kinds: name of a kind -> suffixes in lower case.

    Raises:
        FileNotFoundError: no such folder.
        UserError: no such files in it.
    """
    folder, suffixes = Path(folder), tuple(suffix for group in kinds.values() for suffix in group)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    paths = folder.rglob("*") if recursive else folder.iterdir()
    found = sorted(
        path for path in paths if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file()
    )
    if not found:
        raise UserError(f"{folder}: no {' or '.join(kinds)} in this folder ({', '.join(suffixes)})")
    return found


def listed_videos(folder: Union[str, Path], data_file: Union[str, Path], column: str = "video") -> list[Path]:
    """The videos that a column of a csv file lists, as paths relative to `folder`, in the file's order.

    Raises:
        FileNotFoundError: no such csv file.
        UserError: no such column, or the column is empty.
    """
    with open_csv(data_file) as rows:
        if column not in (rows.fieldnames or ()):
            found = ", ".join(rows.fieldnames or ()) or "none"
            raise UserError(f"{data_file}: needs a column {column!r}, has {found}")
        paths = [Path(folder) / row[column] for row in rows if row[column]]
    if not paths:
        raise UserError(f"{data_file}: lists no videos")
    return paths
