"""Atomic writes, checksums, and file locks that end with the process that holds them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Optional, Union

from opensora.errors import UserError

RANDOM_SUFFIX = "[0-9a-f]{8}"


@contextmanager
def atomic_write(path: Union[str, Path]) -> Iterator[Path]:
    """Yields a temporary path in the folder of `path`, renamed to `path` at the end and removed if the body fails.

    The suffix stays the same, because video writers choose the format by it. The folder is created if it is missing.
    The file is flushed to the disk (fsync) before it gets its name. Temporary files of the same target that killed
    processes left are removed. Those of living processes are not: a writer keeps a lock on its file, which ends with
    the process.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, re.escape(path.stem), re.escape(path.suffix))
    temporary, descriptor = _new_temporary(path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
        os.close(descriptor)


def checksum(path: Path) -> str:
    """The SHA-256 of a file."""
    if path.exists() and not path.is_file():  # reading a pipe or a device might block
        raise UserError(f"{path.name} is not a file")
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def sync(path: Union[str, Path]) -> None:
    """Flushes a file's content, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock_file(path: Path, create: bool = True) -> Optional[int]:
    """An open descriptor that holds an exclusive lock on the file, or None if another process holds it.

    The lock ends when the descriptor is closed or the process ends, however it ends.

    Raises:
        FileNotFoundError: the file does not exist, and `create` is False.
        OSError: the file system does not support locks, or the file cannot be opened for writing.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                return None
            raise
        # If the previous owner removed the file after it was opened here, the lock protects nothing.
        if _is_file_of(descriptor, path):
            return descriptor
        os.close(descriptor)


def _is_file_of(descriptor: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def _new_temporary(path: Path) -> tuple[Path, int]:
    """A new file in the folder of `path` and the descriptor that holds its lock."""
    while True:
        temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.part{path.suffix}")
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        with suppress(OSError):  # without locks no file is ever considered abandoned
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_file_of(descriptor, temporary):  # otherwise another process removed it before it was locked
            return temporary, descriptor
        os.close(descriptor)


def remove_abandoned(folder: Path, stem: str = ".+", suffix: str = r"(\.\w+)?") -> None:
    """Removes temporary files of `atomic_write` in a folder whose processes were killed.

    Args:
        stem, suffix: regular expressions for the name of the target; by default of every target.
    """
    name = re.compile(rf"\.{stem}\.{RANDOM_SUFFIX}\.part{suffix}")
    for found in os.listdir(folder):
        if not name.fullmatch(found):
            continue
        with suppress(OSError):  # another process removed it first
            descriptor = lock_file(folder / found, create=False)
            if descriptor is not None:
                (folder / found).unlink()
                os.close(descriptor)
