"""Probes media files for values missing in annotations: height, width, frame rate and number of frames.

Each file is read once. Results are cached in a database next to the dataset index, keyed by path, size and modification
time. Data workers read the files, so a decoder that crashes or hangs costs only one sample.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Generic, NamedTuple, Optional, TypeVar, Union

from tqdm import tqdm

from opensora.datasets.file_reading import BATCH_SIZE, read_files
from opensora.datasets.media import IMAGE_SUFFIXES, VideoReader, read_image
from opensora.utils.logs import logger

STORE_INTERVAL = 1.0  # seconds; each time the disk is flushed
Signature = Optional[tuple[int, int]]  # size in bytes and modification time in ns; None if there is no file
Result = TypeVar("Result", bound=tuple)


class Media(NamedTuple):
    """Properties of a media file; fps and frames are 0 for images."""

    height: int
    width: int
    fps: float
    frames: int


def read_media(path: str) -> Media:
    """The properties of a video or an image; raises as `VideoReader` and `read_image`."""
    if path.lower().endswith(IMAGE_SUFFIXES):
        height, width, _ = read_image(path).shape
        return Media(height, width, 0, 0)
    with VideoReader(path) as reader:
        return Media(reader.height, reader.width, float(reader.fps or 0), len(reader))


def signature(path: Union[str, Path]) -> Signature:
    """Changes when the file's content changes."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class Probe(Generic[Result]):
    """What a `Prober` finds out about a file.

    Args:
        table: its name in the database; another one for results that are computed differently.
        result: a `NamedTuple` of numbers and texts.
        read: path -> result, see `read_files`.
        progress: text of the progress bar.
        batch_size: files that a data worker reads for one request.
    """

    table: str
    result: Callable[..., Result]
    read: Callable[[str], Result]
    progress: str
    batch_size: int = BATCH_SIZE

    @property
    def columns(self) -> tuple[str, ...]:
        return self.result._fields  # type: ignore[attr-defined]


MEDIA = Probe("media", Media, read_media, "files without annotated size or length")


class Prober(Generic[Result]):
    """Probes files; results are cached in the database `path`."""

    def __init__(self, path: Path, probe: Probe[Result]):
        self._probe = probe
        try:
            self._database = _open_database(path, probe)
        except sqlite3.Error:  # corrupt, or on a file system without locks
            path.unlink(missing_ok=True)
            try:
                self._database = _open_database(path, probe)
            except sqlite3.Error:
                self._database = _open_database(":memory:", probe)

    def close(self) -> None:
        self._database.close()

    def probe(self, paths: Sequence[str]) -> dict[str, Union[Result, str]]:
        """The properties of each file, or the reason why it cannot be read. An interrupted run keeps its results."""
        found: dict[str, Union[Result, str]] = {}
        missing: dict[str, tuple[int, int]] = {}
        query = f"SELECT {', '.join(self._probe.columns)} FROM {self._probe.table} "
        for path in paths:
            key = signature(path)
            if key is None:
                found[path] = f"{path}: no such file"
                continue
            row = self._database.execute(
                query + "WHERE path = ? AND size = ? AND modified = ?", (os.fsencode(path), *key)
            ).fetchone()
            if row:
                found[path] = self._probe.result(*row)
            else:
                missing[path] = key
        results = read_files(list(missing), self._probe.read, self._probe.batch_size)
        rows: list[tuple] = []
        stored = time.monotonic()
        try:
            for path, result in tqdm(results, self._probe.progress, len(missing), delay=1, leave=False):
                found[path] = result
                if not isinstance(result, str):
                    rows.append((os.fsencode(path), *missing[path], *result))
                if time.monotonic() - stored > STORE_INTERVAL:
                    self._store(rows)
                    rows, stored = [], time.monotonic()
        finally:
            self._store(rows)
        return found

    def _store(self, rows: Sequence[tuple]) -> None:
        places = ", ".join("?" * (3 + len(self._probe.columns)))
        try:
            with self._database:
                self._database.executemany(f"INSERT OR REPLACE INTO {self._probe.table} VALUES ({places})", rows)
        except sqlite3.Error as error:  # a full disk costs the cache, not the run
            logger.warning(f"the properties of {len(rows)} files cannot be stored for the next run: {error}")


def _open_database(path: Union[Path, str], probe: Probe) -> sqlite3.Connection:
    database = sqlite3.connect(path)
    columns = ", ".join(("path BLOB PRIMARY KEY", "size INTEGER", "modified INTEGER", *probe.columns))
    database.execute(f"CREATE TABLE IF NOT EXISTS {probe.table} ({columns})")
    return database
