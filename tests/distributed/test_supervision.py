"""Signals, kills and crashes of the processes of a real msrun: no process outlives it, every rank saves, and the exit
status is that of the work. MindSpore itself is not started, so the tests are quick."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from processes import ROOT, free_port

from opensora.process.control import SET_BY_MSRUN
from opensora.process.supervisor import RANKS_SECONDS

MSRUN = Path(sys.executable).with_name("msrun")
LAUNCHER = [sys.executable, "-m", "opensora.launch"]


class Run:
    def __init__(self, folder: Path, mode: str, command=(MSRUN,), prefix=()):
        self.folder = folder
        self.screen = open(folder / "screen", "w")
        self.process = subprocess.Popen(
            [
                *prefix,
                *command,
                "--worker_num=2",
                "--local_worker_num=2",
                f"--master_port={free_port()}",
                f"--log_dir={folder}/logs",
                "--join=True",
                "tests/helpers/supervised.py",
                folder,
                mode,
            ],
            cwd=ROOT,
            env={**os.environ, "PATH": f"{MSRUN.parent}:{os.environ['PATH']}"},
            stdout=self.screen,
            stderr=self.screen,
        )

    def wait_until(self, condition) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, (self.folder / "screen").read_text()[-2000:]
            time.sleep(0.02)

    def wait_until_ready(self) -> None:
        self.wait_until(
            lambda: len(list(self.folder.glob("*.ready"))) == 2 and (self.folder / "scheduler.pid").exists()
        )

    def pid(self, name: str) -> int:
        return int((self.folder / name).read_text())

    def ancestor(self, role: str, generation: int) -> psutil.Process:
        """The process of a role: generation 0 is the worker, 1 its supervisor, 2 its front."""
        return ([process := psutil.Process(self.pid(f"{role}.pid"))] + process.parents())[generation]

    def saved(self) -> int:
        return len(list(self.folder.glob("*.saved")))

    def left(self) -> list:
        """Processes of this run that are alive."""
        mark = str(self.folder)
        children = {self.pid(path.name) for path in self.folder.glob("*.child")}
        found = []
        for process in psutil.process_iter(["pid", "cmdline", "status"]):
            if process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != self.process.pid:
                if process.pid in children or any(mark in argument for argument in process.info["cmdline"] or []):
                    found.append(process)
        return found

    def end(self, timeout: float = 30) -> int:
        """The exit status, after all processes of the run have ended."""
        status = self.process.wait(timeout)
        deadline = time.monotonic() + timeout
        while self.left():
            assert time.monotonic() < deadline, self.left()
            time.sleep(0.05)
        return status

    def text(self) -> str:
        self.screen.close()
        return (self.folder / "screen").read_text()


def processes_naming(folder: Path) -> list:
    """Processes with `folder` in their command line."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(folder) in argument for argument in process.info["cmdline"] or [])
    ]


def test_crash_after_the_work_is_not_a_failure(tmp_path):
    run = Run(tmp_path, "crash at exit")
    run.wait_until(lambda: (tmp_path / "scheduler.pid").exists())
    (tmp_path / "finished").touch()
    assert run.end() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_ranks_save_and_end_when_msrun_gets_a_signal(number, tmp_path):
    run = Run(tmp_path, "graceful")
    run.wait_until_ready()
    run.process.send_signal(number)
    assert run.end() != 0
    assert run.saved() == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_launcher_waits_for_the_ranks(number, tmp_path):
    run = Run(tmp_path, "graceful", LAUNCHER)
    run.wait_until_ready()
    run.process.send_signal(number)
    run.process.wait(30)
    assert run.saved() == 2 and run.end() == 128 + number


def test_second_signal_to_the_launcher_ends_at_once(tmp_path):
    run = Run(tmp_path, "stuck", LAUNCHER)
    run.wait_until_ready()
    run.process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert run.process.poll() is None
    run.process.send_signal(signal.SIGTERM)
    assert run.end(10) == 128 + signal.SIGTERM and run.saved() == 0


def test_ranks_save_and_end_when_the_launcher_is_killed(tmp_path):
    run = Run(tmp_path, "graceful", LAUNCHER)
    run.wait_until_ready()
    run.process.kill()
    run.end()
    assert run.saved() == 2


@pytest.mark.parametrize("delay", [0.1, 0.3, 0.5, 0.8, 1.2])
def test_ranks_end_when_msrun_is_killed_during_start(delay, tmp_path):
    run = Run(tmp_path, "graceful")
    time.sleep(delay)
    run.process.kill()
    assert run.end(timeout=RANKS_SECONDS + 30) == -signal.SIGKILL


@pytest.mark.parametrize(
    "prefix, msrun_set, viewer, ends",
    [("", True, False, True), ("setsid", True, True, True), ("setsid", True, False, False), ("", False, False, False)],
    ids=["msrun that waits", "msrun that shows the log", "msrun that does not wait", "a script"],
)
def test_rank_ends_if_its_launcher_died_before_the_start(prefix, msrun_set, viewer, ends, tmp_path):
    """Only ranks of an msrun with --join=True end with their launcher."""
    variables = dict.fromkeys(SET_BY_MSRUN, "1") if msrun_set else {"RANK_ID": "1"}
    env = {**os.environ, "MS_ROLE": "MS_WORKER", **variables}
    log = tmp_path / "log"
    log.touch()
    tail = subprocess.Popen(["tail", "-f", log], env=env, stdout=subprocess.DEVNULL) if viewer else None
    # The shell exits immediately, so another process has adopted the rank before it starts.
    rank = f"{prefix} {sys.executable} tests/helpers/supervised.py {tmp_path} graceful"
    subprocess.run(
        ["sh", "-c", f"(sleep 0.5; exec {rank} > {log} 2>&1) &"],
        cwd=ROOT,
        env=env,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    if tail:
        time.sleep(3)
        tail.kill()
        tail.wait()
    deadline = time.monotonic() + 30
    while (left := processes_naming(tmp_path)) and not (tmp_path / "rank1.pid").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for process in left:
        process.kill()
    assert bool(left) != ends and (tmp_path / "rank1.pid").exists() != ends


@pytest.mark.slow
def test_ranks_of_an_incomplete_start_end(tmp_path):
    """An msrun that was killed between the start of a rank and that of its log viewer."""
    common = {**os.environ, **dict.fromkeys(SET_BY_MSRUN, "0"), "MS_WORKER_NUM": "2", "MS_SCHED_HOST": "127.0.0.1"}
    port = str(free_port())
    for role in ("MS_SCHED", "MS_WORKER"):
        command = f"exec setsid {sys.executable} tests/helpers/supervised.py {tmp_path} graceful"
        # The shell exits immediately, so another process has adopted the rank before it starts.
        subprocess.run(
            ["sh", "-c", f"(sleep 0.5; {command} > {tmp_path}/{role} 2>&1) &"],
            cwd=ROOT,
            env={**common, "MS_ROLE": role, "MS_SCHED_PORT": port},
        )
    deadline = time.monotonic() + RANKS_SECONDS + 30
    while not (tmp_path / "rank0.ready").exists() or processes_naming(tmp_path):
        assert time.monotonic() < deadline, (processes_naming(tmp_path), (tmp_path / "MS_WORKER").read_text())
        time.sleep(0.1)
    assert (tmp_path / "rank0.saved").exists()


@pytest.mark.parametrize(
    "generation, shown",
    [
        (0, "ERROR in rank 1: ended by SIGKILL"),
        (1, "ERROR in rank 1: its supervising process was ended by SIGKILL"),
        (2, "ERROR in rank 1: process [0-9]+ was killed"),
    ],
    ids=["worker", "supervisor", "front"],
)
def test_killed_rank_is_reported_at_once(generation, shown, tmp_path):
    run = Run(tmp_path, "graceful")
    run.wait_until_ready()
    start = time.monotonic()
    run.ancestor("rank1", generation).kill()
    assert run.end() != 0
    assert time.monotonic() - start < 30  # msrun alone takes 40 s
    assert re.search(shown, run.text())


def test_error_ends_the_other_ranks(tmp_path):
    run = Run(tmp_path, "error")
    assert run.end() == 1
    assert "ERROR in rank 1: clip.mp4: cannot be read" in run.text()


@pytest.mark.slow
def test_supervision_works_under_load_with_nice_19(tmp_path):
    load = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3)]
    try:
        run = Run(tmp_path, "crash at exit", prefix=["nice", "-n", "19"])
        run.wait_until(lambda: (tmp_path / "scheduler.pid").exists())
        (tmp_path / "finished").touch()
        assert run.end(60) == 0
    finally:
        for process in load:
            process.kill()
            process.wait()
