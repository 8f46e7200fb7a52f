"""Settings of the process that make computing on a CPU faster."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import lru_cache

import mindspore as ms

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


@lru_cache(maxsize=1)
def tune_process() -> None:
    """Applies both settings once: called by `device.setup`, and without it by the first use of the kernels."""
    _launch_in_place()
    _keep_freed_memory()


def _launch_in_place() -> None:
    """Runs each operator in the thread that calls it.

    MindSpore passes operators between threads to keep an accelerator busy. On two cores this costs more than it hides:
    without it, decoding with WFVAE takes a third of the time, a small transformer an eighth.
    """
    ms.runtime.launch_blocking()


def _keep_freed_memory() -> None:
    """Lets glibc keep some hundred MB of freed memory.

    By default it returns blocks of a megabyte to the system at once and gets them anew page by page. Kernels and oneDNN
    allocate and free such blocks in every call: encoding with WFVAE takes a fifth more time.
    """
    with suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL(None)
        library.mallopt(M_TRIM_THRESHOLD, 256 << 20)
        library.mallopt(M_MMAP_THRESHOLD, 32 << 20)


def return_freed_memory() -> None:
    """Returns the memory that `_keep_freed_memory` keeps to the system; some milliseconds."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
