"""Lists the videos of a folder or of a csv file."""

from __future__ import annotations

from pathlib import Path
from typing import Union

from opensora.datasets.media import VIDEO_SUFFIXES
from opensora.errors import UserError
from opensora.utils.text_files import open_csv


def list_videos(folder: Union[str, Path], recursive: bool = False) -> list[Path]:
    """The videos in a folder, sorted by name.

    Raises:
        FileNotFoundError: no such folder.
        UserError: no videos in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    paths = folder.rglob("*") if recursive else folder.iterdir()
    videos = sorted(
        path
        for path in paths
        if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not videos:
        raise UserError(f"{folder}: no videos in this folder ({', '.join(VIDEO_SUFFIXES)})")
    return videos


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
