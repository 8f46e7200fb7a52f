"""Runs checks, each in a process of its own with a time limit for each row.

The process of a check leads a session, which is killed when a row exceeds its time, when the check is done, and when
this command is stopped. The kernel kills it if this command dies. A row during which the process crashes or hangs has
failed; another process runs the rows that are left.

This module must not import MindSpore.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any, NamedTuple, Optional

from opensora.doctor import child
from opensora.doctor.checks import FAILED, SKIPPED, Check, Row, Settings
from opensora.process.control import die_with_parent, kill_session

MOST_INTERRUPTIONS = 3  # of one check, each of which may take the whole time of a row
END_SECONDS = 5.0  # a process that left the process group may take to end
LONGEST_OUTPUT = 4000  # bytes that are kept of the output of a process that ended early


class _Interruption(NamedTuple):
    """Why the process of a check ended before its last row, and its last output."""

    reason: str
    output: str


def run_check(check: Check, settings: Settings, timeout: float, environment: Mapping[str, str]) -> Iterator[Row]:
    """Yields the results of a check's rows as they arrive.

    Args:
        timeout: in seconds, of each row and of the start of the process.
        environment: variables of the process; PYTHONPATH is set so that it imports the same packages.
    """
    finished: list[str] = []
    for _ in range(MOST_INTERRUPTIONS):
        started = time.monotonic()
        running: Optional[str] = None
        interruption = None
        with _Process(check, settings, finished, environment) as process:
            for message in process.messages(timeout):
                if isinstance(message, _Interruption):
                    interruption = message
                elif message == "end":
                    if check.joins:
                        process.wait()
                elif "start" in message:
                    running, started = message["start"], time.monotonic()
                else:
                    assert running is not None, "a result follows the start of its row"
                    finished.append(running)
                    yield Row(check=check.name, name=running, **message)
                    running, started = None, time.monotonic()
        if interruption is None:
            return
        row = Row(FAILED, interruption.reason, check=check.name, output=interruption.output)
        yield replace(row, name=running or "start", seconds=time.monotonic() - started)
        if running is None:  # importing or preparing failed, as it would again
            return
        finished.append(running)
        if not check.resumes:
            return
    yield Row(SKIPPED, f"not run after {MOST_INTERRUPTIONS} rows that crashed or hung", check=check.name, name="others")


class _Process:
    """The process of a check; a context, at whose end no process of its session is left."""

    def __init__(self, check: Check, settings: Settings, skip: list[str], environment: Mapping[str, str]):
        self.check, self.settings, self.skip = check, settings, skip
        # Started as a script, this command has the folder of its modules in the path.
        paths = [path or "." for path in sys.path if Path(path).resolve() != Path(__file__).resolve().parent]
        self.environment = {**environment, "PYTHONPATH": os.pathsep.join(paths)}
        self.process: Optional[subprocess.Popen] = None

    def __enter__(self) -> _Process:
        self.output: IO[bytes] = tempfile.TemporaryFile()
        self.reports, descriptor = os.pipe()
        request = {
            "target": self.check.target,
            "settings": asdict(self.settings),
            "skip": self.skip,
            "descriptor": descriptor,
        }
        parent = os.getpid()

        def before_python() -> None:
            if not die_with_parent(parent):
                os._exit(1)

        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", child.__name__, json.dumps(request)],
                stdin=subprocess.DEVNULL,
                stdout=self.output,
                stderr=self.output,
                env=self.environment,
                pass_fds=[descriptor],
                start_new_session=True,
                preexec_fn=before_python,
            )
        except BaseException:
            self.__exit__()
            raise
        finally:
            os.close(descriptor)
        return self

    def __exit__(self, *_) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            kill_session(self.process.pid)
            self.process.wait()
        os.close(self.reports)
        self.output.close()

    def wait(self) -> None:
        """Lets the process leave the process group, for a limited time."""
        assert self.process is not None
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(END_SECONDS)

    def messages(self, timeout: float) -> Generator[Any, None, None]:
        """The messages of the process; the last is "end" or an `_Interruption`."""
        assert self.process is not None
        received, deadline = b"", time.monotonic() + timeout
        while True:
            exited = self.process.poll() is not None  # before reading, so that nothing it wrote is lost
            seconds = 0.0 if exited else min(0.2, max(0.0, deadline - time.monotonic()))
            if select.select([self.reports], [], [], seconds)[0]:
                data = os.read(self.reports, 65536)
                received += data
                *lines, received = received.split(b"\n")
                for line in lines:
                    message = json.loads(line)
                    yield message
                    if message == "end":
                        return
                    deadline = time.monotonic() + timeout
                if data:
                    continue
                exited = exited or self._exits()
            if exited:
                yield _Interruption(self._why_ended(), self._last_output())
                return
            if time.monotonic() >= deadline:
                yield _Interruption(f"no result within {timeout:g} s", self._last_output())
                return

    def _exits(self) -> bool:
        """Whether the process, which has closed its reports, ends."""
        assert self.process is not None
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(1.0)
        return self.process.returncode is not None

    def _why_ended(self) -> str:
        assert self.process is not None
        code = self.process.returncode
        if code < 0:
            hint = "; the system does that when memory runs out" if code == -signal.SIGKILL else ""
            return f"the process was ended by {signal.Signals(-code).name}{hint}"
        lines = [line.strip() for line in self._last_output().splitlines() if line.strip()]
        return f"the process exited with status {code}: {lines[-1] if lines else 'no output':.200}"

    def _last_output(self) -> str:
        descriptor = self.output.fileno()
        start = max(0, os.fstat(descriptor).st_size - LONGEST_OUTPUT)
        return os.pread(descriptor, LONGEST_OUTPUT, start).decode(errors="replace")  # seek would move the writer too


def without_msrun(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process that does not belong to the process group of msrun."""
    of_msrun = ("MS_ROLE", "MS_WORKER_NUM", "MS_NODE_ID", "MS_SCHED_HOST", "MS_SCHED_PORT", "MS_TOPO_TIMEOUT")
    left_out = {*of_msrun, "RANK_ID", "RANK_SIZE"}
    return {name: value for name, value in environment.items() if name not in left_out}
