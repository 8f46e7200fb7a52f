"""Reasons of failed runs, from logs in the formats of MindSpore 2.7 and the commands."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from processes import ROOT

from opensora.process.failed_ranks import failure_report

NAMED = "ERROR in rank {}: clip.mp4: no frames; remove it from the list"
TRACEBACK = """Traceback (most recent call last):
  File "a.py", line 3, in <module>
    raise RuntimeError("x")
RuntimeError: device memory is exhausted
"""
CHAIN = """Traceback (most recent call last):
  File "a.py", line 3, in <module>
KeyError: 'a'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "a.py", line 5, in <module>
opensora.errors.StrangeError: second
"""
MINDSPORE = (
    "[ERROR] DISTRIBUTED(1234,7f0,python):2026-01-01-10:00:00.000.000 [mindspore/ccsrc/a.cc:80] Connect] "
    "Failed to connect to rank 1\n"
)
SCHEDULER = "ERROR in msrun's scheduler: a process ended before the run did\n"


def write(folder, **logs) -> None:
    for name, text in logs.items():
        (folder / f"{name}.log").write_text(text)


@pytest.mark.parametrize(
    "logs, expected",
    [
        (
            {"worker_0": MINDSPORE, "worker_1": f"step 1\n{NAMED.format(1)}\n{MINDSPORE}", "scheduler": SCHEDULER},
            ["rank 1: clip.mp4: no frames; remove it from the list"],
        ),
        (
            {"worker_0": MINDSPORE, "worker_3": TRACEBACK + MINDSPORE},
            ["rank 3: RuntimeError: device memory is exhausted"],
        ),
        ({"worker_0": CHAIN}, ["rank 0: opensora.errors.StrangeError: second"]),
        (
            {f"worker_{rank}": TRACEBACK for rank in (10, 2, 1)},
            ["ranks 1, 2, 10: RuntimeError: device memory is exhausted"],
        ),
        ({"worker_0": MINDSPORE, "scheduler": SCHEDULER}, ["msrun's scheduler: a process ended before the run did"]),
        ({"worker_0": MINDSPORE}, ["rank 0: DISTRIBUTED(1234"]),
        (
            {"worker_0": "ERROR in rank 0: killed by SIGKILL; the system does that when memory runs out\n"},
            ["rank 0: killed by SIGKILL"],
        ),
        ({"worker_0": "step 3 loss 0.5\n\n"}, ["no log in", "the last line of"]),
        ({"worker_0": ""}, ["no log in", "the last line of"]),
        ({}, ["no log in"]),
    ],
)
def test_report_contains_the_most_reliable_reason(tmp_path, logs, expected):
    write(tmp_path, **logs)
    lines = failure_report(tmp_path)
    assert len(lines) == len(expected)
    assert all(line.startswith(start) for line, start in zip(lines, expected)), lines


def test_logs_of_an_earlier_run_are_ignored_and_invalid_bytes_accepted(tmp_path):
    write(tmp_path, worker_7=NAMED.format(7))
    os.utime(tmp_path / "worker_7.log", (1000, 1000))
    (tmp_path / "worker_0.log").write_bytes(b"\xff\x00" * 100_000 + b"\nERROR in rank 0: \xe9t\xe9\n")
    (line,) = failure_report(tmp_path, since=2000)
    assert line == f"rank 0: \ufffdt\ufffd (log: {tmp_path}/worker_0.log)"


def test_command_runs_without_mindspore(tmp_path):
    write(tmp_path, worker_0=NAMED.format(0))
    check = (
        "import sys; sys.modules['mindspore'] = None; from opensora.cli.main import main; "
        "main(['failed-ranks', sys.argv[1]])"
    )
    finished = subprocess.run([sys.executable, "-c", check, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert finished.stdout.startswith("error: rank 0: clip.mp4"), finished.stderr
