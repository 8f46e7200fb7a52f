"""Files opened for random access, whose length is checked before every access."""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Optional

from opensora.errors import UserError

MAP_NORESERVE = 0x4000  # of Linux: the map of a file may be larger than the memory


def truncated(path: Path, what: str = "the file") -> UserError:
    """The error for a file that ends too early."""
    return UserError(f"{path}: {what} is truncated; download or copy the file again")


class OpenFile:
    """A file opened for random access; closed when the last reference is gone."""

    def __init__(self, path: Path):
        self.path = path
        self._file: io.FileIO = open(path, "rb", buffering=0)
        self._map: Optional[mmap.mmap] = None
        self._lock = Lock()
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, size: int) -> bytearray:
        """Reads `size` bytes at `offset`. Raises UserError if the file is too short."""
        if offset + size > self.size:
            raise truncated(self.path)
        data = bytearray(size)
        view = memoryview(data)
        with self._lock:  # of the file's position: a thread may read ahead
            self._file.seek(offset)
            done = 0
            while done < size:
                count = self._file.readinto(view[done:])
                if not count:  # the file was truncated after it was opened
                    raise truncated(self.path)
                done += count
        return data

    def mapped(self, offset: int, size: int) -> Optional[memoryview]:
        """`size` bytes at `offset` of a memory map of the file, which is made once; None if there can be no map.

        The map is private and writable: MindSpore's `Tensor.asnumpy` writes to the memory of a tensor that an operator
        has used, the numbers that are there already. The file never changes.
        """
        if offset + size > os.fstat(self._file.fileno()).st_size:  # an access after the end would kill the process
            raise truncated(self.path)
        if self._map is None:
            protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | MAP_NORESERVE
            try:
                self._map = mmap.mmap(self._file.fileno(), 0, flags, protection)
            except OSError:
                return None
        return memoryview(self._map)[offset : offset + size]

    def drop(self, offset: int, size: int) -> None:
        """Removes these bytes of the memory map from the process's memory; the next access reads them again."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            start = offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, start, offset + size - start)

    def __del__(self):
        if hasattr(self, "_file"):
            self._file.close()


class ScatteredFile:
    """Several regions (offset, size) of a file, read as one concatenated region."""

    def __init__(self, file: OpenFile, places: Sequence[tuple[int, int]]):
        self.file, self.places, self.path = file, places, file.path

    def read(self, offset: int, size: int) -> bytearray:
        """Reads `size` bytes at `offset` of the concatenated regions."""
        if len(self.places) == 1:
            return self.file.read(self.places[0][0] + offset, size)
        data = bytearray()
        for start, length in self.places:
            count = min(size - len(data), length - offset)
            if count > 0:
                data += self.file.read(start + offset, count)
            offset = max(0, offset - length)
        return data

    def mapped(self, offset: int, size: int) -> Optional[memoryview]:
        """`OpenFile.mapped`, or None if there are several regions."""
        return self.file.mapped(self.places[0][0] + offset, size) if len(self.places) == 1 else None

    def drop(self, offset: int, size: int) -> None:
        """`OpenFile.drop`."""
        if len(self.places) == 1:
            self.file.drop(self.places[0][0] + offset, size)
