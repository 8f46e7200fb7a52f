"""What the machine can do: the rates of a large product of matrices and of a large copy, with all cores it may use.

numpy multiplies with OpenBLAS, so the rate is that of neither framework.
"""

from __future__ import annotations

import json
import os
import platform
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.worker import timed

SIZE = 2048  # rows and columns of the matrices
COPIED = 1 << 26  # float32 numbers, far more than caches hold
ATTEMPTS = 8  # the best one counts: others may use the machine


def gemm_rate() -> float:
    """Floating-point operations a second of a float32 product of matrices."""
    a, b = np.ones((SIZE, SIZE), np.float32), np.ones((SIZE, SIZE), np.float32)
    return 2 * SIZE**3 / min(timed(lambda: a @ b)[0] for _ in range(ATTEMPTS))


def copy_rate() -> float:
    """Bytes a second, read and written, of a copy that every core does a part of."""
    source, target = np.ones(COPIED, np.float32), np.zeros(COPIED, np.float32)
    cores = len(os.sched_getaffinity(0))
    parts = list(zip(np.array_split(target, cores), np.array_split(source, cores)))
    with ThreadPoolExecutor(cores) as pool:
        return (
            2
            * source.nbytes
            / min(timed(lambda: list(pool.map(lambda part: np.copyto(*part), parts)))[0] for _ in range(ATTEMPTS))
        )


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    print(
        json.dumps(
            {
                "processor": processor(),
                "cores": len(os.sched_getaffinity(0)),
                "gemm_flops_per_second": gemm_rate(),
                "copy_bytes_per_second": copy_rate(),
            }
        )
    )
