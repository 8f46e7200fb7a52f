"""Checks with faults, for the tests of `opensora doctor`: targets of `Check`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from opensora.doctor.checks import OK, Result, Rows, Settings


def good() -> Result:
    return Result(OK, "fine", numbers={"value": 1.5})


def crash() -> Result:
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
    return good()


def hang() -> Result:
    """Waits for a process that leads its own process group; its id is written to the file of a variable."""
    child = subprocess.Popen(["sleep", "1000"], preexec_fn=os.setpgrp)
    Path(os.environ["PID_FILE"]).write_text(str(child.pid))
    child.wait()
    return good()


def slow() -> Result:
    time.sleep(0.4)
    return good()


def error() -> Result:
    raise RuntimeError("\n-----\nthe device is busy\nsecond line")


def rows_crash(settings: Settings) -> Rows:
    return {"first": good, "second": crash, "third": good}


def rows_hang(settings: Settings) -> Rows:
    return {"first": good, "second": hang, "third": good}


def rows_slow(settings: Settings) -> Rows:
    return {str(number): slow for number in range(3)}


def rows_error(settings: Settings) -> Rows:
    return {"first": error, "second": good}


def rows_crashes(settings: Settings) -> Rows:
    return {**{str(number): crash for number in range(5)}, "good": good}


def rows_settings(settings: Settings) -> Rows:
    return {"settings": lambda: Result(OK, f"{settings.device} {settings.failed}")}


def rows_missing(settings: Settings) -> Rows:
    raise ModuleNotFoundError("No module named 'mindspore'")


def rows_exit(settings: Settings) -> Rows:
    sys.exit(3)


def rows_crash_at_exit(settings: Settings) -> Rows:
    import atexit

    atexit.register(os.kill, os.getpid(), signal.SIGSEGV)
    return {"first": good}


def rows_wrong_primitive(settings: Settings) -> Rows:
    """The primitives, of which one ignores its bias."""
    from opensora.doctor.layer_cases import linear_cases
    from opensora.doctor.place import set_up
    from opensora.doctor.primitives import rows_of
    from opensora.ops.linear import linear

    set_up("CPU")
    right, other, *_ = linear_cases()
    return rows_of([replace(right, run=lambda x, weight, bias: linear(x, weight)), other], "fp32")
