"""Peak rates of the machine: a large GEMM and a large copy, with all cores that the process may use.

numpy uses OpenBLAS, so the GEMM rate is independent of both frameworks.
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
COPIED = 1 << 26  # float32 values, far more than the caches hold
ATTEMPTS = 8  # the best one counts, since other processes may use the machine


def gemm_rate() -> float:
    """FLOP/s of a float32 GEMM."""
    a, b = np.ones((SIZE, SIZE), np.float32), np.ones((SIZE, SIZE), np.float32)
    return 2 * SIZE**3 / min(timed(lambda: a @ b)[0] for _ in range(ATTEMPTS))


def copy_rate() -> float:
    """Bytes per second, read and written, of a copy that is split over all cores."""
    source, target = np.ones(COPIED, np.float32), np.zeros(COPIED, np.float32)
    cores = len(os.sched_getaffinity(0))
    slices = list(zip(np.array_split(target, cores), np.array_split(source, cores)))
    with ThreadPoolExecutor(cores) as pool:
        return (
            2
            * source.nbytes
            / min(timed(lambda: list(pool.map(lambda pair: np.copyto(*pair), slices)))[0] for _ in range(ATTEMPTS))
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
