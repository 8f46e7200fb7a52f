"""What annotations leave out and the files themselves say: height, width, frame rate and number of frames.

A file is read once. What was found is kept in a database beside the dataset index, under the file's path, size and time
of modification. Files are read by data workers, so a decoder that crashes or hangs costs one sample.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Optional, Union

import numpy as np
from tqdm import tqdm

from opensora.datasets import broken
from opensora.datasets.loader import Loader
from opensora.datasets.media import IMAGE_SUFFIXES, VideoReader, read_image
from opensora.datasets.sampler import Batch, Sampler

MOST_WORKERS = 8
FILES_A_BATCH = 8
Signature = Optional[tuple[int, int]]  # size in bytes and time of modification in ns; None where there is no file


class Media(NamedTuple):
    """What a file says of itself; fps and frames are 0 for images."""

    height: int
    width: int
    fps: float
    frames: int


def signature(path: Union[str, Path]) -> Signature:
    """What changes with the file's content."""
    try:
        about = os.stat(path)
    except (OSError, ValueError):
        return None
    return about.st_size, about.st_mtime_ns


class Prober:
    """Looks files up, reading those that are not in the database `path`."""

    def __init__(self, path: Path):
        try:
            self._database = _open_database(path)
        except sqlite3.Error:  # damaged, or on a disk that has no locks
            path.unlink(missing_ok=True)
            try:
                self._database = _open_database(path)
            except sqlite3.Error:
                self._database = _open_database(":memory:")

    def close(self) -> None:
        self._database.close()

    def probe(self, paths: Sequence[str]) -> dict[str, Union[Media, str]]:
        """What the files say of themselves; of one that cannot be read the reason."""
        signatures = {path: signature(path) for path in paths}
        found: dict[str, Union[Media, str]] = {
            path: f"{path}: no such file" for path, about in signatures.items() if about is None
        }
        for path, about in signatures.items():
            row = (
                about
                and self._database.execute(
                    "SELECT height, width, fps, frames FROM media WHERE path = ? AND size = ? AND modified = ?",
                    (os.fsencode(path), *about),
                ).fetchone()
            )
            if row:
                found[path] = Media(*row)
        missing = [path for path in signatures if path not in found]
        for path, result in tqdm(
            _read_all(missing), "files without annotated size or length", len(missing), delay=1, leave=False
        ):
            found[path] = result
            if isinstance(result, Media):
                self._database.execute(
                    "INSERT OR REPLACE INTO media VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (os.fsencode(path), *signatures[path], *result),
                )
        self._database.commit()
        return found


def _open_database(path: Union[Path, str]) -> sqlite3.Connection:
    database = sqlite3.connect(path)
    database.execute(
        "CREATE TABLE IF NOT EXISTS media (path BLOB PRIMARY KEY, size INTEGER, modified INTEGER, "
        "height INTEGER, width INTEGER, fps REAL, frames INTEGER)"
    )
    return database


def _read_all(paths: Sequence[str]) -> Iterator[tuple[str, Union[Media, str]]]:
    """Each path with what its file says, read by as many workers as pay off."""
    workers = min(MOST_WORKERS, os.cpu_count() or 1, -(-len(paths) // FILES_A_BATCH))
    for batch in Loader(_Files(paths), _InOrder(len(paths)), _as_they_are, workers) if paths else ():
        for place, result in zip(batch["positions"], batch["results"]):
            yield paths[place], result


class _Files:
    """As a dataset: each file's `Media`, or the reason why there is none."""

    def __init__(self, paths: Sequence[str]):
        self.paths = list(paths)

    def item(self, index: int, rng: np.random.Generator) -> Union[Media, str]:
        found, reason = broken.attempt(self.paths[index], partial(_measure, self.paths[index]))
        return reason if found is None else found


def _measure(path: str) -> Media:
    if path.lower().endswith(IMAGE_SUFFIXES):
        return Media(*read_image(path).shape[:2], 0, 0)
    with VideoReader(path) as reader:
        return Media(reader.height, reader.width, float(reader.fps or 0), len(reader))


def _as_they_are(items: Sequence) -> dict:
    return {"results": list(items)}


class _InOrder(Sampler):
    """Every file once."""

    def __init__(self, count: int):
        self.count = count

    def upcoming(self) -> Iterator[Batch]:
        for first in range(0, self.count, FILES_A_BATCH):
            places = np.arange(first, min(first + FILES_A_BATCH, self.count))
            yield Batch(places, places, places.tolist())

    def advance(self) -> None:
        pass
