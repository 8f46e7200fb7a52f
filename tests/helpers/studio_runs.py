"""A service of the studio in a process of its own, with workers that need no models."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

import httpx
from processes import ROOT, free_port

PROGRAM = ROOT / "tests/helpers/studio_process.py"
START_SECONDS = 60.0
FINAL = ("completed", "failed", "cancelled")


class RunningStudio:
    """Started with `flags`; `environment` adds variables."""

    def __init__(self, data: Path, *flags: str, port: Optional[int] = None, program: Any = (PROGRAM,), **environment):
        self.data, self.port = data, port or free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.log = data.with_name(f"{data.name}.log")
        self.http = httpx.Client(base_url=self.address, timeout=30)
        self._command = [sys.executable, *map(str, program), "--port", str(self.port), "--data", str(data), *flags]
        self._environment = {**os.environ, **environment}
        self.start()

    def start(self) -> None:
        """Starts the process, at first or after `kill`."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(self._command, cwd=ROOT, env=self._environment, stdout=log, stderr=log)

    def wait_until_up(self) -> RunningStudio:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                assert self.http.get("/healthz").json() == {"status": "ok"}
                return self
            except httpx.TransportError:
                assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.05)

    def create(self, prompt: str = "a red circle", **fields: Any) -> dict[str, Any]:
        answer = self.http.post("/v1/videos", json={"prompt": prompt, "steps": 3, **fields})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def job(self, video_id: str) -> dict[str, Any]:
        answer = self.http.get(f"/v1/videos/{video_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def wait_for(self, video_id: str, *statuses: str, seconds: float = 60.0) -> dict[str, Any]:
        """The job when it has one of the statuses; by default when it has ended."""
        deadline = time.monotonic() + seconds
        while (job := self.job(video_id))["status"] not in (statuses or FINAL):
            assert time.monotonic() < deadline, job
            time.sleep(0.03)
        return job

    def upload(self, path: Path, **headers: str) -> httpx.Response:
        with open(path, "rb") as file:
            return self.http.post(
                "/v1/files", files={"file": (path.name, file)}, headers={"X-Requested-With": "opensora", **headers}
            )

    def worker_pids(self) -> list[int]:
        """The processes that the service has started."""
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [int(pid) for pid in found]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends the service as a user does; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout=30)
        finally:
            self.kill()
            self.http.close()


@contextmanager
def studio(data: Path, *flags: str, **settings: Any) -> Iterator[RunningStudio]:
    """A service that is up, and ended after the block."""
    running = RunningStudio(data, *flags, **settings)
    try:
        yield running.wait_until_up()
    finally:
        running.stop()


def is_alive(pid: int) -> bool:
    """Whether a process runs; those that have ended but are not waited for do not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
