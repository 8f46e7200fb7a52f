"""Supervision of the processes that msrun starts.

On SIGTERM msrun of MindSpore 2.7 ends at once and leaves its processes running. On Ctrl-C it kills them without
warning and exits with status 0. It also reports a crash during MindSpore's shutdown as a failure of the finished work.
Therefore each process that msrun starts becomes three before MindSpore is imported:

    front         the process that msrun started. It forwards signals and exits with the supervisor's status.
    supervisor    has its own session, so that msrun cannot kill it together with the front. It asks the worker to
                  stop when the front gets a signal or dies, allows it a limited time, and kills the processes that
                  are left. Its exit status is the one that the worker reported after its work, whatever happens
                  while MindSpore shuts down.
    worker        imports MindSpore and does the work. The kernel kills it if the supervisor dies.

Supervisors of one run on one machine find each other by their names, which end with the process id of msrun, or with
the scheduler's port if msrun does not wait. If a worker fails or stops, its supervisor signals the others, because a
collective operation would wait for the lost rank.

This module must not import MindSpore.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from typing import Callable, NoReturn, Optional

from opensora.process.control import (
    FRONT_NAME,
    ON_LINUX,
    REPEATED_WITHIN,
    USER_SIGNALS,
    RankProcesses,
    die_with_parent,
    end_log_viewers,
    ended_by,
    exit_code,
    kill_session,
    print_error,
    set_name,
)
from opensora.process.supervisor import KILL, LONG_STOP, SHORT_STOP, STATUS, STOP, start_worker

MARK = "OPENSORA_SUPERVISED"  # in the environment of a worker and of the processes that it starts
LAUNCHER_DIED = signal.SIGUSR2  # to a front

_report_pipe: Optional[int] = None  # the worker's end
_barrier: Optional[Callable[[], None]] = None


def is_supervised() -> bool:
    """Whether this process is a worker of a supervisor."""
    return _report_pipe is not None


def supervise() -> None:
    """Under msrun: makes this process the front, and returns in the worker only. Elsewhere it does nothing.

    Call it before MindSpore is imported and before the process has threads.
    """
    if ON_LINUX and "MS_ROLE" in os.environ and MARK not in os.environ:
        _become_front()


def meet_at_end(barrier: Callable[[], None]) -> None:
    """`barrier` waits for all ranks. `report_success` calls it, so that no rank shuts down while another works."""
    global _barrier
    _barrier = barrier


def report_success() -> None:
    """Call it when the work is done: from here on nothing changes the exit status of a supervised run."""
    sys.stdout.flush()
    sys.stderr.flush()
    if _barrier:
        _barrier()
    report_status(0)
    if _barrier:
        _barrier()  # all have reported


def report_status(status: int) -> None:
    """Sends the supervisor the exit status of the run."""
    _report(f"{STATUS}{status}")


def allow_long_stop(allowed: bool) -> None:
    """Whether this process saves its state when it is asked to stop, and needs time for that."""
    _report(LONG_STOP if allowed else SHORT_STOP)


def _report(message: str) -> None:
    if _report_pipe is not None:
        with suppress(BrokenPipeError):
            os.write(_report_pipe, f"{message}\n".encode())


def _become_front() -> None:
    global _report_pipe
    run = RankProcesses(os.getppid())
    if run.launcher_has_died():
        print("error: msrun ended while this rank was starting; ending the rank", file=sys.stderr, flush=True)
        end_log_viewers()
        os._exit(128 + signal.SIGTERM)
    received = {*USER_SIGNALS, LAUNCHER_DIED, signal.SIGCHLD}
    received = {number for number in received if signal.getsignal(number) != signal.SIG_IGN}  # nohup
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, received)
    requests, front_end = os.pipe()
    supervisor = os.fork()
    if supervisor == 0:
        os.close(front_end)
        _report_pipe = start_worker(run, requests, mask)  # returns in the worker
        os.environ[MARK] = "1"
        return
    os.close(requests)
    set_name(FRONT_NAME.format(run.name))
    if run.launcher_waits:
        with suppress(OSError):
            # msrun polls its processes without a pause, which takes a core from them.
            os.setpriority(os.PRIO_PROCESS, run.launcher, 10)
    if run.launcher_waits and not die_with_parent(run.launcher, LAUNCHER_DIED):
        os.write(front_end, STOP)
    _forward_signals(run, supervisor, received, front_end)


def _forward_signals(run: RankProcesses, supervisor: int, received: set, front_end: int) -> NoReturn:
    stopped_at = None
    while True:
        number = signal.sigwait(received)
        if number == signal.SIGCHLD:
            pid, status = os.waitpid(supervisor, os.WNOHANG)
            if pid:
                if os.WIFSIGNALED(status):
                    kill_session(supervisor)
                    print_error(f"its supervising process was {ended_by(status)}")
                    run.end_other_ranks()
                os._exit(exit_code(status))
            continue
        repeated = stopped_at is not None and time.monotonic() - stopped_at > REPEATED_WITHIN
        stopped_at = stopped_at or time.monotonic()
        with suppress(BrokenPipeError):
            os.write(front_end, KILL if repeated and number in USER_SIGNALS else STOP)
