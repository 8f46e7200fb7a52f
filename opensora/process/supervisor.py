"""The supervisor of one worker process; see `opensora.process.supervision`.

This module must not import MindSpore.
"""

from __future__ import annotations

import math
import os
import select
import signal
import time
from contextlib import suppress
from typing import Callable, NoReturn, Optional

from opensora.process.control import (
    RANK_FAILED,
    RANK_STOPPED,
    SUPERVISOR_NAME,
    USER_SIGNALS,
    RankProcesses,
    die_with_parent,
    ended_by,
    exit_code,
    print_error,
    set_name,
    started_by_msrun,
)

STOP_SECONDS = 10.0  # a worker has to end after it was asked to stop
SAVE_SECONDS = 900.0  # the same for one that saves a checkpoint first
SHUTDOWN_SECONDS = 10.0  # a worker has to end after it reported its status
STOPPED_SECONDS = 3.0  # a worker has to end after another rank stopped
SCHEDULER_PERIOD = 5.0  # seconds between two checks of the scheduler's supervisor whether the ranks are still alive

RANKS_SECONDS = 30.0  # after which the scheduler of an msrun that has ended must have all its ranks

STOP, KILL = b"s", b"k"  # requests of the front
LONG_STOP, SHORT_STOP, STATUS = "long stop", "short stop", "status "  # reports of the worker; STATUS and a number
KILLED = 128 + signal.SIGKILL  # exit status


def start_worker(run: RankProcesses, requests: int, mask: set) -> int:
    """Forks: this process supervises and does not return; the new one, the worker, does.

    Args:
        requests: descriptor from which the front's requests are read.
        mask: the signal mask of the worker.

    Returns:
        In the worker, the descriptor of its reports.
    """
    os.setsid()
    supervisor = os.getpid()
    reports, worker_end = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(requests)
        os.close(reports)
        os.setpgid(0, 0)
        if not die_with_parent(supervisor):
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return worker_end
    os.close(worker_end)
    with suppress(OSError):
        os.setpgid(worker, worker)  # both do it, so that neither has to wait for the other
    set_name(SUPERVISOR_NAME.format(run.name))
    Supervisor(run, worker).supervise(requests, reports, mask)


class Supervisor:
    """Waits for the worker to end, for its reports and for requests of the front."""

    def __init__(self, run: RankProcesses, worker: int):
        self.run, self.worker, self.front = run, worker, os.getppid()
        self.is_scheduler = os.environ["MS_ROLE"] == "MS_SCHED"
        self.reported: Optional[int] = None  # the status
        self.saves_first = False
        self.stop_requested = self.kill_requested = False
        self.deadline = math.inf
        self.most_ranks, self.started = 0, time.monotonic()  # the scheduler's

    def supervise(self, requests: int, reports: int, mask: set) -> NoReturn:
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        for number in (*USER_SIGNALS, RANK_FAILED, RANK_STOPPED, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(wake)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        handlers: dict[int, Callable[[bytes], None]] = {
            requests: self.handle_request,
            reports: self.handle_report,
            woken: self.handle_signals,
        }
        while True:
            pid, status = os.waitpid(self.worker, os.WNOHANG)
            if pid:
                break
            for source in select.select(list(handlers), [], [], self.wait_seconds())[0]:
                data = os.read(source, 4096)
                handlers[source](data)
                if not data:
                    del handlers[source]
            if self.is_scheduler:
                self.watch_ranks()
            if time.monotonic() >= self.deadline:
                self.kill_worker()
        if reports in handlers:
            os.set_blocking(reports, False)
            with suppress(BlockingIOError):
                self.handle_report(os.read(reports, 4096))
        self.kill_worker()  # the processes that it started
        code = self.conclude(status)
        if self.stop_requested:
            self.run.end_log_viewer()
        os._exit(code)

    def wait_seconds(self) -> Optional[float]:
        """The longest time to wait for the next event."""
        seconds = max(0.0, self.deadline - time.monotonic())
        if self.is_scheduler:
            complete = self.most_ranks >= self.run.ranks_here and not self.stop_requested
            seconds = min(seconds, SCHEDULER_PERIOD if complete else 0.2)
        return None if seconds == math.inf else seconds

    def handle_request(self, data: bytes) -> None:
        if KILL in data:
            self.kill_requested = True
            self.kill_worker()
            return
        self.ask_to_stop(SAVE_SECONDS if self.saves_first else STOP_SECONDS)
        if not data and not self.is_scheduler:
            self.front_was_killed()

    def front_was_killed(self) -> None:
        """msrun kills fronts after another front has failed, and on Ctrl-C. In the latter case it also kills the front
        of the scheduler and exits with status 0, which a job script would take for success."""
        time.sleep(0.05)
        if self.run.scheduler_has_front():
            print_error(f"process {self.front} was killed; msrun does that when another rank has ended")
        else:
            self.run.end_launcher()

    def handle_report(self, data: bytes) -> None:
        for message in data.decode().splitlines():
            if message.startswith(STATUS):
                self.reported = int(message[len(STATUS) :])
                self.end_within(SHUTDOWN_SECONDS)
            else:
                self.saves_first = message == LONG_STOP

    def handle_signals(self, numbers: bytes) -> None:
        if RANK_FAILED in numbers:
            self.kill_requested = True
            self.kill_worker()
        elif RANK_STOPPED in numbers:
            self.ask_to_stop(STOPPED_SECONDS)
        elif any(number in USER_SIGNALS for number in numbers):
            self.ask_to_stop(SAVE_SECONDS if self.saves_first else STOP_SECONDS)

    def ask_to_stop(self, seconds: float) -> None:
        """Asks the worker to end within a number of seconds. The scheduler ends after the ranks."""
        if self.is_scheduler:
            self.stop_requested = True
            return
        self.end_within(seconds)
        if not self.stop_requested:
            self.stop_requested = True
            with suppress(ProcessLookupError):
                os.kill(self.worker, signal.SIGTERM)

    def watch_ranks(self) -> None:
        """The scheduler is not needed once the ranks of this machine, which end together with all others, are gone."""
        ranks = len(self.run.other_supervisors())
        self.most_ranks = max(self.most_ranks, ranks)
        if self.ranks_are_missing():
            self.run.signal_supervisors(RANK_STOPPED)
        elif ranks or not (self.most_ranks or self.stop_requested):
            return
        self.reported = 0
        self.end_within(0.5 if self.stop_requested else SHUTDOWN_SECONDS)

    def ranks_are_missing(self) -> bool:
        """Whether an msrun that has ended started this scheduler, but some of its ranks never began to work.

        It was killed while it started them: those that it did start would wait for the others.
        """
        age = time.monotonic() - self.started
        incomplete = self.most_ranks < self.run.ranks_here and age > RANKS_SECONDS
        return incomplete and not self.run.launcher_waits and started_by_msrun()

    def end_within(self, seconds: float) -> None:
        self.deadline = min(self.deadline, time.monotonic() + seconds)

    def kill_worker(self) -> None:
        """Kills the worker and the processes that it started."""
        self.deadline = math.inf
        with suppress(ProcessLookupError):
            os.killpg(self.worker, signal.SIGKILL)

    def conclude(self, status: int) -> int:
        """The exit status, from the worker's wait status. Signals the other ranks if this one did not succeed."""
        if self.reported is not None:
            code = self.reported
        elif self.kill_requested:
            self.run.signal_supervisors(RANK_FAILED)  # the scheduler's may not know
            return KILLED
        elif self.stop_requested and os.WIFSIGNALED(status):
            code = 128 + signal.SIGTERM
        else:
            code = exit_code(status)
            if os.WIFSIGNALED(status):
                print_error(ended_by(status))
        if code in (128 + number for number in USER_SIGNALS):
            self.run.signal_supervisors(RANK_STOPPED)
        elif code != 0:
            self.run.end_other_ranks()
        return code
