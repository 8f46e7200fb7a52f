"""Rates of this machine, measured in less than a second: matrix products, and reading a file."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Optional

import numpy as np

ROWS, WIDTH = 1024, 2304  # of the products of the published transformer
SAMPLE_BYTES = 64 << 20
CACHED_RATE = 5e9  # bytes per second from the page cache; several times faster than any disk


def product_rate() -> float:
    """Floating-point operations per second of a linear layer in float32."""
    from mindspore import Tensor

    from opensora.ops.linear import linear

    x, weight = Tensor(np.ones((ROWS, WIDTH), np.float32)), Tensor(np.ones((WIDTH, WIDTH), np.float32))
    seconds = []
    for _ in range(4):  # the first call includes the start of threads
        start = time.perf_counter()
        linear(x, weight).asnumpy()
        seconds.append(time.perf_counter() - start)
    return 2 * ROWS * WIDTH**2 / min(seconds)


def read_rate(path: Optional[Path]) -> float:
    """Bytes per second of reading a file that is not in the page cache; `CACHED_RATE` where it cannot be measured."""
    if path is None or not hasattr(os, "posix_fadvise") or path.stat().st_size < SAMPLE_BYTES:
        return CACHED_RATE
    size = SAMPLE_BYTES
    with open(path, "rb", buffering=0) as file:
        file.seek(path.stat().st_size // 2 // SAMPLE_BYTES * SAMPLE_BYTES)
        place = file.tell()
        os.posix_fadvise(file.fileno(), place, size, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        file.read(size)
        return size / max(time.perf_counter() - start, size / CACHED_RATE)
