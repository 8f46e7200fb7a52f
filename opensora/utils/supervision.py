"""Supervision of the processes that msrun starts.

msrun of MindSpore 2.7 ends at once on SIGTERM and leaves its processes running, kills them without warning on Ctrl-C
and then exits with status 0, and takes a crash while MindSpore shuts down for a failure of work that was done. So
each process that msrun starts becomes three before MindSpore is imported:

    front         the process that msrun knows. It passes signals on and exits with the supervisor's status.
    supervisor    has a session of its own, so that msrun cannot kill it together with the front. It asks the worker to
                  stop when the front gets a signal or dies, allows it a limited time, and ends what is left of it. Its
                  exit status is what the worker reported after its work, whatever happens while MindSpore shuts down.
    worker        imports MindSpore and does the work. The kernel kills it if the supervisor dies.

If a worker fails, its supervisor tells the fronts of the other local ranks, which end theirs at once: a collective
operation would wait for the lost rank.

This module must not import MindSpore.
"""
from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Callable, NoReturn, Optional

ON_LINUX = sys.platform == "linux"
MARK = "OPENSORA_SUPERVISED"  # in the environment of a worker and of what it starts
STOP_SECONDS = 10.0  # a worker has to end after it was asked to stop
SAVE_SECONDS = 900.0  # the same for one that saves a checkpoint first
SHUTDOWN_SECONDS = 10.0  # a worker has to end after it reported its status
REPEATED_WITHIN = 0.5  # seconds in which a repeated signal is the same request: launchers and shells send it twice

OTHER_RANK_FAILED, LAUNCHER_DIED = signal.SIGUSR1, signal.SIGUSR2
USER_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP, KILL = b"s", b"k"  # what the front tells the supervisor
KILLED = 128 + signal.SIGKILL  # exit status
LONG_STOP, SHORT_STOP, STATUS = "long stop", "short stop", "status "  # what the worker tells it; STATUS and a number

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
        _be_front()


def meet_at_end(barrier: Callable[[], None]) -> None:
    """`barrier` waits for all ranks. `report_success` calls it, so that no rank shuts down while another works."""
    global _barrier
    _barrier = barrier


def report_success() -> None:
    """The work of this process is done. From here on nothing changes the exit status of a supervised run."""
    sys.stdout.flush()
    sys.stderr.flush()
    if _barrier:
        _barrier()
    report_status(0)
    if _barrier:
        _barrier()  # all have reported


def report_status(status: int) -> None:
    """Tells the supervisor the status that the run should end with."""
    _tell(f"{STATUS}{status}")


def allow_long_stop(allowed: bool) -> None:
    """Whether this process saves its state when it is asked to stop, and needs time for that."""
    _tell(LONG_STOP if allowed else SHORT_STOP)


def _tell(message: str) -> None:
    if _report_pipe is not None:
        with suppress(BrokenPipeError):
            os.write(_report_pipe, f"{message}\n".encode())


def die_with_parent(parent: int, with_signal: int = signal.SIGKILL) -> bool:
    """The kernel sends this process a signal when its parent, whose process id is given, ends.

    Returns:
        False if the parent has ended already, in which case no signal will come.
    """
    if ON_LINUX:
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, int(with_signal), 0, 0, 0)
    return os.getppid() == parent


# The front ------------------------------------------------------------------------------------------------------------

def _be_front() -> None:
    launcher = _Launcher(os.getppid())
    received = {*USER_SIGNALS, OTHER_RANK_FAILED, LAUNCHER_DIED, signal.SIGCHLD}
    received = {number for number in received if signal.getsignal(number) != signal.SIG_IGN}  # nohup
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, received)
    requests, front_end = os.pipe()
    supervisor = os.fork()
    if supervisor == 0:
        os.close(front_end)
        _be_supervisor(launcher, requests, mask)
        return  # in the worker
    os.close(requests)
    if launcher.waits and not die_with_parent(launcher.pid, LAUNCHER_DIED):
        os.write(front_end, STOP)
    _pass_signals_on(supervisor, received, front_end, launcher)


def _pass_signals_on(supervisor: int, received: set, front_end: int, launcher: _Launcher) -> NoReturn:
    asked_at = None
    while True:
        number = signal.sigwait(received)
        if number == signal.SIGCHLD:
            pid, status = os.waitpid(supervisor, os.WNOHANG)
            if pid:
                if os.WIFSIGNALED(status):
                    _print_error(f"its supervising process was ended by {signal.Signals(os.WTERMSIG(status)).name}")
                    launcher.end_other_ranks(front=os.getpid())
                os._exit(_exit_code(status))
            continue
        repeated = asked_at is not None and time.monotonic() - asked_at > REPEATED_WITHIN
        asked_at = asked_at or time.monotonic()
        by_force = number == OTHER_RANK_FAILED or (number in USER_SIGNALS and repeated)
        with suppress(BrokenPipeError):
            os.write(front_end, KILL if by_force else STOP)


# The supervisor -------------------------------------------------------------------------------------------------------

def _be_supervisor(launcher: _Launcher, requests: int, mask: set) -> None:
    """Returns in the worker."""
    global _report_pipe
    os.setsid()
    front, supervisor = os.getppid(), os.getpid()
    reports, worker_end = os.pipe()
    worker = os.fork()
    if worker == 0:
        os.close(requests)
        os.close(reports)
        os.setpgid(0, 0)
        if not die_with_parent(supervisor):
            os._exit(1)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        _report_pipe = worker_end
        os.environ[MARK] = "1"
        return
    os.close(worker_end)
    with suppress(OSError):
        os.setpgid(worker, worker)  # both do it, so that neither has to wait for the other
    _Supervisor(launcher, front, worker).run(requests, reports, mask)


class _Supervisor:
    """Waits for the worker, for what the worker reports and for what the front requests."""

    def __init__(self, launcher: _Launcher, front: int, worker: int):
        self.launcher, self.front, self.worker = launcher, front, worker
        self.is_scheduler = os.environ["MS_ROLE"] == "MS_SCHED"
        self.reported: Optional[int] = None  # the status
        self.saves_first = self.is_scheduler  # the scheduler has to stay until the ranks have saved
        self.asked = self.told_to_kill = False
        self.deadline = float("inf")

    def run(self, requests: int, reports: int, mask: set) -> NoReturn:
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        for number in (*USER_SIGNALS, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(wake)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        handlers = {requests: self.handle_request, reports: self.handle_report, woken: self.handle_signals}
        while True:
            pid, status = os.waitpid(self.worker, os.WNOHANG)
            if pid:
                break
            timeout = None if self.deadline == float("inf") else max(0.0, self.deadline - time.monotonic())
            for source in select.select(list(handlers), [], [], timeout)[0]:
                data = os.read(source, 4096)
                handlers[source](data)
                if not data:
                    del handlers[source]
            if time.monotonic() >= self.deadline:
                self.kill()
        if reports in handlers:
            os.set_blocking(reports, False)
            with suppress(BlockingIOError):
                self.handle_report(os.read(reports, 4096))
        self.end_by_force()  # what the worker started
        os._exit(self.conclude(status))

    def handle_request(self, data: bytes) -> None:
        if KILL in data:
            self.told_to_kill = True
            self.end_by_force()
            return
        self.ask_to_stop()
        if not data and not self.is_scheduler:
            # The front was killed. msrun does that on Ctrl-C, and then exits with status 0, which a job script would
            # take for success.
            self.launcher.terminate()

    def handle_report(self, data: bytes) -> None:
        for message in data.decode().splitlines():
            if message.startswith(STATUS):
                self.reported = int(message[len(STATUS):])
                self.deadline = min(self.deadline, time.monotonic() + SHUTDOWN_SECONDS)
            else:
                self.saves_first = message == LONG_STOP

    def handle_signals(self, data: bytes) -> None:
        if any(number in USER_SIGNALS for number in data):
            self.ask_to_stop()

    def ask_to_stop(self) -> None:
        if self.asked:
            return
        self.asked = True
        self.deadline = min(self.deadline, time.monotonic() + (SAVE_SECONDS if self.saves_first else STOP_SECONDS))
        if not self.is_scheduler:
            with suppress(ProcessLookupError):
                os.kill(self.worker, signal.SIGTERM)

    def end_by_force(self) -> None:
        """Kills the worker and what it started."""
        self.deadline = float("inf")
        with suppress(ProcessLookupError):
            os.killpg(self.worker, signal.SIGKILL)

    def conclude(self, status: int) -> int:
        """The exit status, from the worker's wait status. The other ranks are ended if this one failed."""
        if self.reported is not None:
            code = self.reported
        elif self.told_to_kill:
            return KILLED
        elif self.asked and os.WIFSIGNALED(status):
            code = 128 + signal.SIGTERM
        else:
            code = _exit_code(status)
            if os.WIFSIGNALED(status):
                _print_error(_signal_reason(os.WTERMSIG(status)))
        if code not in (0, *(128 + number for number in USER_SIGNALS)):
            self.launcher.end_other_ranks(self.front)
        return code


# Processes and messages -----------------------------------------------------------------------------------------------

class _Launcher:
    """The parent of the fronts: msrun, or whatever else set MindSpore's variables.

    Attributes:
        waits: whether it is an msrun that waits for its processes, so that they must not outlive it.
    """

    def __init__(self, pid: int):
        self.pid = pid
        arguments = _command_line(pid)
        self.waits = any(Path(argument).name == "msrun" or argument.startswith("mindspore.parallel")
                         for argument in arguments[:4]) and _flag(arguments, "--join").lower() in ("true", "1")
        self.started = _start_time(pid)

    def terminate(self) -> None:
        if self.waits and _start_time(self.pid) == self.started:  # the number may belong to another process by now
            with suppress(OSError):
                os.kill(self.pid, signal.SIGTERM)

    def end_other_ranks(self, front: int) -> None:
        """Tells the fronts on this machine, other than the one named, that the run has failed."""
        own = _command_line(front) or _command_line(os.getpid())
        for entry in os.listdir("/proc"):
            if entry.isdigit() and int(entry) != front and _parent(int(entry)) == self.pid:
                if _command_line(int(entry)) == own:  # not the processes that show logs
                    with suppress(OSError):
                        os.kill(int(entry), OTHER_RANK_FAILED)


def _command_line(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    return []


def _flag(arguments: list[str], name: str) -> str:
    """The value of a flag, given as `--name=value` or `--name value`; "" without it."""
    for argument, following in zip(arguments, [*arguments[1:], ""]):
        if argument == name:
            return following
        if argument.startswith(f"{name}="):
            return argument[len(name) + 1:]
    return ""


def _status_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name of the program."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def _parent(pid: int) -> Optional[int]:
    fields = _status_fields(pid)
    return int(fields[1]) if fields else None


def _start_time(pid: int) -> Optional[str]:
    fields = _status_fields(pid)
    return fields[19] if fields else None


def _exit_code(status: int) -> int:
    """As shells count: 128 and its number for a signal."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _signal_reason(number: int) -> str:
    name = signal.Signals(number).name
    if number == signal.SIGKILL:
        return f"killed by {name}; the system does that when memory runs out"
    return f"ended by {name}"


def rank_name() -> str:
    """How errors name this process under msrun."""
    return "msrun's scheduler" if os.environ["MS_ROLE"] == "MS_SCHED" else f"rank {os.environ.get('RANK_ID', '?')}"


def _print_error(reason: str) -> None:
    # msrun shows the lines of logs that have ERROR in capitals.
    print(f"ERROR in {rank_name()}: {reason}", file=sys.stderr, flush=True)
