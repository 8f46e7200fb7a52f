"""Probes media files for values missing in annotations: height, width, frame rate and number of frames.

Each file is read once. Results are cached in a database next to the dataset index, keyed by path, size and modification
time. Data workers read the files, so a decoder that crashes or hangs costs only one sample.
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
from opensora.datasets.sampler import BatchRequest, Sampler

MAX_WORKERS = 8
BATCH_SIZE = 8
Signature = Optional[tuple[int, int]]  # size in bytes and modification time in ns; None if there is no file


class Media(NamedTuple):
    """Properties of a media file; fps and frames are 0 for images."""

    height: int
    width: int
    fps: float
    frames: int


def signature(path: Union[str, Path]) -> Signature:
    """Changes when the file's content changes."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


class Prober:
    """Probes files; results are cached in the database `path`."""

    def __init__(self, path: Path):
        try:
            self._database = _open_database(path)
        except sqlite3.Error:  # corrupt, or on a file system without locks
            path.unlink(missing_ok=True)
            try:
                self._database = _open_database(path)
            except sqlite3.Error:
                self._database = _open_database(":memory:")

    def close(self) -> None:
        self._database.close()

    def probe(self, paths: Sequence[str]) -> dict[str, Union[Media, str]]:
        """The properties of each file, or the reason why it cannot be read."""
        found: dict[str, Union[Media, str]] = {}
        missing: dict[str, tuple[int, int]] = {}
        for path in paths:
            key = signature(path)
            if key is None:
                found[path] = f"{path}: no such file"
                continue
            query = "SELECT height, width, fps, frames FROM media WHERE path = ? AND size = ? AND modified = ?"
            row = self._database.execute(query, (os.fsencode(path), *key)).fetchone()
            if row:
                found[path] = Media(*row)
            else:
                missing[path] = key
        results = _read_all(list(missing))
        for path, result in tqdm(results, "files without annotated size or length", len(missing), delay=1, leave=False):
            found[path] = result
            if isinstance(result, Media):
                self._database.execute(
                    "INSERT OR REPLACE INTO media VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (os.fsencode(path), *missing[path], *result),
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
    """Yields each path with its result; short lists use fewer workers."""
    workers = min(MAX_WORKERS, os.cpu_count() or 1, -(-len(paths) // BATCH_SIZE))
    for batch in Loader(_Files(paths), _InOrder(len(paths)), _collate, workers) if paths else ():
        for place, result in zip(batch["positions"], batch["results"]):
            yield paths[place], result


class _Files:
    """A dataset of files; an item is the file's `Media`, or the reason why it cannot be read."""

    def __init__(self, paths: Sequence[str]):
        self.paths = list(paths)

    def item(self, index: int, rng: np.random.Generator) -> Union[Media, str]:
        media, reason = broken.try_read(self.paths[index], partial(_measure, self.paths[index]))
        return str(reason) if media is None else media


def _measure(path: str) -> Media:
    if path.lower().endswith(IMAGE_SUFFIXES):
        height, width, _ = read_image(path).shape
        return Media(height, width, 0, 0)
    with VideoReader(path) as reader:
        return Media(reader.height, reader.width, float(reader.fps or 0), len(reader))


def _collate(items: Sequence) -> dict:
    return {"results": list(items)}


class _InOrder(Sampler):
    """Yields every file once, in order."""

    def __init__(self, count: int):
        self.count = count

    def upcoming(self) -> Iterator[BatchRequest]:
        for first in range(0, self.count, BATCH_SIZE):
            places = np.arange(first, min(first + BATCH_SIZE, self.count))
            yield BatchRequest(places, places, places.tolist())

    def advance(self) -> None:
        pass
