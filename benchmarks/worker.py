"""A process that holds one model and runs one step whenever it is asked to; both ends of the pipe.

Processes of two implementations can so take turns, and the peak of memory is that of one case. Needs numpy alone.
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

ROOT = Path(__file__).resolve().parents[1]
COMPARED = 64  # elements of a result

Step = Callable[[], np.ndarray]


def serve(build: Callable[[], tuple[Step, dict[str, Any]]]) -> None:
    """The worker's end. `build` makes the step, which returns its result, and facts to report about it.

    Writes lines of json: the facts, what a first run gave, and for every line on stdin how long another run took.
    """
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no reply

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
    """Some elements, evenly spread."""
    flat = result.reshape(-1)
    return [float(value) for value in flat[np.linspace(0, flat.size - 1, COMPARED).astype(int)]]


def status_bytes(key: str) -> int:
    """A figure of /proc/self/status: VmRSS is what is in memory, VmHWM the most that ever was."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{key}:")[1].split()[0]) * 1024


class Worker:
    """The other end: `python -m module *arguments` as a context. `facts` and `first` are its first two replies.

    Raises:
        ValueError: the process ended, for the reason it wrote on stderr.
    """

    def __init__(self, python: str, module: str, *arguments: str):
        self.name = " ".join((module, *arguments))
        self.process = subprocess.Popen(
            [python, "-m", module, *arguments],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "GLOG_v": "3"},
        )  # MindSpore: errors, no warnings

    def __enter__(self) -> Worker:
        self.facts = self._reply()
        self.first = self._reply()
        return self

    def __exit__(self, *_) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def run(self) -> dict[str, Any]:
        """Runs the step once more."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self._reply()

    def _reply(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise ValueError(f"{self.name} ended with code {self.process.wait()}; the lines above say why")
        return json.loads(line)
