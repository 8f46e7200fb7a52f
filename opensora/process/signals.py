"""The effect of SIGINT, SIGTERM and SIGHUP on a command.

By default they raise `Stopped` in the main thread, so that files are closed and half-written ones removed. Work that
can be saved uses `graceful_stop` instead, which only records the request.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional

from opensora.process import supervision
from opensora.process.control import REPEATED_WITHIN, USER_SIGNALS


class Stopped(KeyboardInterrupt):
    """A signal of the user or the system ended the command."""

    def __init__(self, number: int, message: str = ""):
        super().__init__(message or f"stopped by {signal.Signals(number).name}")
        self.exit_status = 128 + number


def handle_signals() -> None:
    """Makes the signals raise `Stopped`. Call it again after libraries that install their own handlers."""
    _install(_raise)


def ignore_signals() -> None:
    """For a process that is ending: Python would restore the default handlers before its last lines have run."""
    _install(signal.SIG_IGN)


class StopRequest:
    """`signal` is the number of the signal that requested the stop, or None."""

    signal: Optional[int] = None


@contextmanager
def graceful_stop(announcement: str) -> Iterator[StopRequest]:
    """Within the block the first signal is only recorded, and `announcement` is printed. A second one ends the process
    at once.

    A supervised process ignores repeated signals: its supervisor kills it on the second.
    """
    request = StopRequest()

    def record(number: int, frame) -> None:
        request.signal = number
        _install(_Repeated())
        # Not print: the signal may have interrupted a print, and Python's buffers are not reentrant.
        os.write(sys.stderr.fileno(), f"{signal.Signals(number).name}: {announcement}\n".encode())

    _install(record)
    supervision.allow_long_stop(True)
    try:
        yield request
    finally:
        supervision.allow_long_stop(False)
        if request.signal is None:
            handle_signals()


def _install(handler) -> None:
    for number in USER_SIGNALS:
        if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
            continue  # nohup
        signal.signal(number, handler)


def _raise(number: int, frame) -> None:
    _install(_Repeated())
    raise Stopped(number)


class _Repeated:
    """Handles signals after the first. Launchers and shells send the same one twice within moments, which is one
    request. A later one ends the process at once."""

    def __init__(self):
        self.first = time.monotonic()

    def __call__(self, number: int, frame) -> None:
        if not supervision.is_supervised() and time.monotonic() - self.first > REPEATED_WITHIN:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
