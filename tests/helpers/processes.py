"""Running the project's commands and msrun as users do."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Optional

import pytest

import opensora  # noqa: F401, before MindSpore, whose threads heed what it sets

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    """A port of this machine that nobody uses, for msrun: several test runs may share a machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


MSRUN = Path(sys.executable).with_name("msrun")


def msrun_command(workers: int, log_dir: Path, *command, port: Optional[int] = None) -> dict:
    """Arguments of subprocess.run and subprocess.Popen."""
    return dict(
        args=[
            MSRUN,
            f"--worker_num={workers}",
            f"--local_worker_num={workers}",
            f"--master_port={port or free_port()}",
            f"--log_dir={log_dir}",
            "--join=True",
            *map(str, command),
        ],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{MSRUN.parent}:{os.environ['PATH']}"},
        text=True,
    )


def msrun(
    workers: int, log_dir: Path, *command, port: Optional[int] = None
) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Runs a command under msrun; returns the launcher's process and each worker's log."""
    finished = subprocess.run(**msrun_command(workers, log_dir, *command, port=port), capture_output=True, timeout=600)
    return finished, [path.read_text() for path in sorted(log_dir.glob("worker_*.log"))]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)
