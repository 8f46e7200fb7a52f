"""One run per output folder, and an early error if its results would not fit or could not be written."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Optional, Union

from opensora.errors import UserError
from opensora.utils.files import lock_file
from opensora.utils.logs import logger

LOCK_NAME = ".lock"


@contextmanager
def exclusive_folder(folder: Union[str, Path], is_main: bool = True) -> Iterator[Path]:
    """Creates the folder if it is missing and keeps other runs out of it until the block ends or the process dies.

    The operating system locks the file `.lock` in the folder, so a file that a killed process left does not block the
    next run.

    Args:
        folder: the output folder of a run.
        is_main: False in the processes of a run other than its first, which holds the lock for all.

    Raises:
        UserError: another process writes to the folder.
        OSError: the folder cannot be created or written to.
    """
    folder = Path(folder)
    if not is_main:
        yield folder
        return
    is_new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise OSError(f"{folder}: the output folder or its parent is a file; choose another folder") from error
    except OSError as error:
        raise OSError(
            f"{folder}: the output folder cannot be created ({error.strerror}); choose another folder"
        ) from error
    descriptor = _lock(folder)
    try:
        yield folder
    finally:
        if descriptor is not None:
            with suppress(OSError):
                (folder / LOCK_NAME).unlink()
            os.close(descriptor)
        if is_new:
            with suppress(OSError):  # it contains results
                folder.rmdir()


def check_free_space(folder: Union[str, Path], needed_bytes: float) -> None:
    """Raises OSError if the disk of an existing folder has fewer bytes left than a run is expected to write."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise OSError(
            f"{folder}: about {needed_bytes / 1e9:.2g} GB will be written, but {free / 1e9:.2g} GB are free; "
            f"free some space or choose another folder"
        )


def compressed_bytes(num_frames: int, pixels: int) -> float:
    """An estimate: compressed videos take about 0.05 bytes per pixel, images 0.5."""
    return num_frames * pixels * (0.05 if num_frames > 1 else 0.5)


def _lock(folder: Path) -> Optional[int]:
    path = folder / LOCK_NAME
    try:
        descriptor = lock_file(path)
    except PermissionError as error:
        raise OSError(f"{folder}: no permission to write to the output folder; choose another folder") from error
    except OSError as error:
        if not os.access(folder, os.W_OK):
            raise OSError(
                f"{folder}: the output folder cannot be written to ({error.strerror}); choose another folder"
            ) from error
        logger.warning(f"{folder}: cannot be locked ({error.strerror}); make sure that no other run writes to it")
        return None
    if descriptor is None:
        hint = " (under msrun, --use_parallel True makes one run of all processes)" if "MS_ROLE" in os.environ else ""
        raise UserError(
            f"{folder}: another run writes to this folder ({_owner(path)}); wait for it to end, stop it, "
            f"or choose another folder{hint}"
        )
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return descriptor


def _owner(path: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8")[:200] or "its process is just starting"
    return "its process could not be read"
