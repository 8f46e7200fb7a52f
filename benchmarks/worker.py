"""A worker process that holds one model and runs one step per request; both ends of the pipe.

So the processes of two implementations can take turns, and peak memory is that of one case. Needs only numpy.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable

import numpy as np

from opensora.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
COMPARED = 64  # number of elements of a result

Step = Callable[[], np.ndarray]


def serve(build: Callable[[], tuple[Step, dict[str, Any]]]) -> None:
    """The worker's end of the pipe. `build` returns the step and facts to report about it.

    Writes json lines: the facts, the time and result of a first run, and for every line on stdin the time of a run.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # output of libraries must not mix with the replies

    def reply(**values) -> None:
        print(json.dumps({**values, "peak_bytes": status_bytes("VmHWM")}), file=replies, flush=True)

    step, facts = build()
    reply(**facts, ready_bytes=status_bytes("VmRSS"))
    seconds, result = timed(step)
    reply(seconds=seconds, result=sample(result))
    for _ in sys.stdin:
        reply(seconds=timed(step)[0])


def timed(step: Step) -> tuple[float, np.ndarray]:
    start = time.perf_counter()
    result = step()
    return time.perf_counter() - start, result


def sample(result: np.ndarray) -> list[float]:
    """Evenly spaced elements."""
    flat = result.reshape(-1)
    return [float(value) for value in flat[np.linspace(0, flat.size - 1, COMPARED).astype(int)]]


def status_bytes(key: str) -> int:
    """A value of /proc/self/status: VmRSS is the resident memory, VmHWM its peak."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{key}:")[1].split()[0]) * 1024


class Worker:
    """The parent's end of the pipe, a context manager that runs `python -m module *arguments`.

    `facts` and `first` are the first two replies.

    Raises:
        UserError: the process ended; its stderr shows the reason.
    """

    def __init__(self, python: str, module: str, *arguments: str):
        self.name = " ".join((module, *arguments))
        self.process = subprocess.Popen(
            [python, "-m", module, *arguments],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "GLOG_v": "3"},  # MindSpore logs errors only
        )

    def __enter__(self) -> Worker:
        self.facts = self._reply()
        self.first = self._reply()
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def run(self) -> dict[str, Any]:
        """Runs the step again."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise UserError(f"{self.name} ended with code {self.process.wait()}; the lines above show the reason")
        return json.loads(line)
