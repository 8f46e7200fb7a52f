"""Processes of the checks: crashes, hangs, errors and signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from processes import ROOT

from opensora.doctor import child
from opensora.doctor.checks import FAILED, OK, SKIPPED, Check, Row, Settings
from opensora.doctor.report import exit_status, table
from opensora.doctor.runner import run_check, without_msrun


def run(name: str, timeout: float = 60.0, settings: Settings = Settings("CPU"), **changes) -> list[Row]:
    check = Check("faulty", "a check of these tests", f"doctor_checks:{name}", **changes)
    return list(run_check(check, settings, timeout, os.environ))


def has_ended(pid: int) -> bool:
    """Whether a process is gone within a few seconds."""
    deadline = time.monotonic() + 10
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def children() -> list[psutil.Process]:
    return [process for process in psutil.Process().children(recursive=True) if child.__name__ in process.cmdline()]


def test_crash_fails_its_row_and_the_others_run():
    rows = run("rows_crash")
    assert [(row.name, row.status) for row in rows] == [("first", OK), ("second", FAILED), ("third", OK)]
    assert rows[1].detail == "the process was ended by SIGSEGV" and "last words" in rows[1].output
    assert rows[0].detail == "fine" and rows[0].numbers == {"value": 1.5} and rows[0].check == "faulty"
    assert exit_status(rows) == 1 and not children()


def test_hanging_row_is_killed_with_all_of_its_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("PID_FILE", str(tmp_path / "pid"))
    started = time.monotonic()
    rows = run("rows_hang", timeout=3.0)
    assert time.monotonic() - started < 30
    assert [(row.name, row.status) for row in rows] == [("first", OK), ("second", FAILED), ("third", OK)]
    assert rows[1].detail == "no result within 3 s" and rows[1].seconds >= 3
    assert has_ended(int((tmp_path / "pid").read_text())) and not children()


def test_time_limit_is_that_of_a_row():
    assert [row.status for row in run("rows_slow", timeout=1.0)] == [OK, OK, OK]


def test_exception_is_the_result_of_its_row():
    first, second = run("rows_error")
    assert (first.status, first.detail) == (FAILED, "RuntimeError: the device is busy")
    assert "Traceback" in first.output and "doctor_checks.py" in first.output and second.status == OK


def test_check_that_crashes_again_and_again_is_given_up():
    rows = run("rows_crashes")
    assert [row.status for row in rows] == [FAILED] * 3 + [SKIPPED]
    assert rows[-1].detail == "not run after 3 rows that crashed or hung"


def test_check_that_does_not_resume_ends_with_its_crash():
    assert [row.name for row in run("rows_crash", resumes=False)] == ["first", "second"]


@pytest.mark.parametrize(
    "name, detail",
    [
        ("rows_missing", "the process exited with status 1: ModuleNotFoundError: No module named 'mindspore'"),
        ("rows_exit", "the process exited with status 3: no output"),
    ],
)
def test_check_that_cannot_start_has_one_failed_row(name, detail):
    (row,) = run(name)
    assert (row.name, row.status, row.detail) == ("start", FAILED, detail)


def test_crash_after_the_last_row_is_no_failure():
    assert [row.status for row in run("rows_crash_at_exit", joins=True)] == [OK]


def test_check_gets_the_settings():
    assert run("rows_settings", settings=Settings("CPU", failed=True))[0].detail == "CPU True"


def test_wrong_primitive_is_found_in_its_process():
    rows = {row.name: row for row in run("rows_wrong_primitive")}
    wrong, right = rows["linear.linear forward"], rows["linear.linear without bias forward"]
    assert wrong.status == FAILED and wrong.detail.startswith("error ") and right.status == OK
    assert rows["linear.linear backward"].status == FAILED
    assert "OPENSORA_CPU_KERNELS=0" in wrong.remedy
    shown = table([wrong, right])
    assert "linear.linear forward" in shown and wrong.detail in shown and "1 failed" in shown


def test_processes_outside_the_group_do_not_see_msrun():
    environment = {"MS_ROLE": "MS_WORKER", "MS_WORKER_NUM": "2", "RANK_ID": "0", "DEVICE_ID": "0", "PATH": "/bin"}
    assert without_msrun(environment) == {"DEVICE_ID": "0", "PATH": "/bin"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signal_leaves_no_process(number, tmp_path):
    with open(tmp_path / "screen", "w") as screen:
        command = [sys.executable, "-m", "opensora.doctor", "--device", "CPU", "--only", "primitives-fp32", "sample"]
        doctor = subprocess.Popen(command, cwd=ROOT, stdout=screen, stderr=screen)
        deadline = time.monotonic() + 60
        while not (found := [p.pid for p in psutil.Process(doctor.pid).children() if child.__name__ in p.cmdline()]):
            assert time.monotonic() < deadline and doctor.poll() is None, Path(screen.name).read_text()
            time.sleep(0.02)
        doctor.send_signal(number)
        status = doctor.wait(30)
    assert status == (-number if number == signal.SIGKILL else 128 + number)
    assert all(has_ended(pid) for pid in found)
    if number != signal.SIGKILL:
        assert Path(screen.name).read_text().splitlines()[-1] == f"stopped by {number.name}"
