"""Supervision of the processes that msrun starts.

msrun of MindSpore 2.7 ends at once on SIGTERM and leaves its processes running, kills them without warning on Ctrl-C
and then exits with status 0, and takes a crash while MindSpore shuts down for a failure of work that was done. So
each process that msrun starts becomes three before MindSpore is imported:

    front         the process that msrun knows. It passes signals on and exits with the supervisor's status.
    supervisor    has a session of its own, so that msrun cannot kill it together with the front. It asks the worker to
                  stop when the front gets a signal or dies, allows it a limited time, and ends what is left of it. Its
                  exit status is what the worker reported after its work, whatever happens while MindSpore shuts down.
    worker        imports MindSpore and does the work. The kernel kills it if the supervisor dies.

Supervisors of one run on one machine find each other by the address of msrun's scheduler in their environment. If a
worker fails or stops, its supervisor tells the others, because a collective operation would wait for the lost rank.

This module must not import MindSpore.
"""
from __future__ import annotations

import ctypes
import math
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

STOPPED_SECONDS = 3.0  # a worker has to end after another rank stopped
FAILED_SECONDS = 2.0  # a failed rank waits for the others to end, so that msrun sees the failure first
SCHEDULER_PERIOD = 5.0  # seconds between two looks of the scheduler's supervisor at whether the ranks are still there

LAUNCHER_DIED = signal.SIGUSR2  # to a front
RANK_FAILED, RANK_STOPPED = signal.SIGUSR1, signal.SIGUSR2  # to a supervisor, from another
USER_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FRONT_NAME, SUPERVISOR_NAME = "opensora-front", "opensora-super"  # as ps shows them
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
        _prctl(1, int(with_signal))  # PR_SET_PDEATHSIG of linux/prctl.h
    return os.getppid() == parent


def _prctl(option: int, value) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def _set_name(name: str) -> None:
    _prctl(15, name.encode())  # PR_SET_NAME


# The front ------------------------------------------------------------------------------------------------------------

def _be_front() -> None:
    launcher = _Launcher(os.getppid())
    received = {*USER_SIGNALS, LAUNCHER_DIED, signal.SIGCHLD}
    received = {number for number in received if signal.getsignal(number) != signal.SIG_IGN}  # nohup
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, received)
    requests, front_end = os.pipe()
    supervisor = os.fork()
    if supervisor == 0:
        os.close(front_end)
        _be_supervisor(launcher, requests, mask)
        return  # in the worker
    os.close(requests)
    _set_name(FRONT_NAME)
    if launcher.waits and not die_with_parent(launcher.pid, LAUNCHER_DIED):
        os.write(front_end, STOP)
    _pass_signals_on(supervisor, received, front_end)


def _pass_signals_on(supervisor: int, received: set, front_end: int) -> NoReturn:
    asked_at = None
    while True:
        number = signal.sigwait(received)
        if number == signal.SIGCHLD:
            pid, status = os.waitpid(supervisor, os.WNOHANG)
            if pid:
                if os.WIFSIGNALED(status):
                    for left in map(int, filter(str.isdigit, os.listdir("/proc"))):
                        if _stat_field(left, 3) == str(supervisor):  # in the supervisor's session
                            os.kill(left, signal.SIGKILL)
                    _print_error(f"its supervising process was {_ended_by(status)}")
                    _end_other_ranks()
                os._exit(_exit_code(status))
            continue
        repeated = asked_at is not None and time.monotonic() - asked_at > REPEATED_WITHIN
        asked_at = asked_at or time.monotonic()
        with suppress(BrokenPipeError):
            os.write(front_end, KILL if repeated and number in USER_SIGNALS else STOP)


# The supervisor -------------------------------------------------------------------------------------------------------

def _be_supervisor(launcher: _Launcher, requests: int, mask: set) -> None:
    """Returns in the worker."""
    global _report_pipe
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
        _report_pipe = worker_end
        os.environ[MARK] = "1"
        return
    os.close(worker_end)
    with suppress(OSError):
        os.setpgid(worker, worker)  # both do it, so that neither has to wait for the other
    _set_name(SUPERVISOR_NAME)
    _Supervisor(launcher, worker).run(requests, reports, mask)


class _Supervisor:
    """Waits for the worker, for what the worker reports and for what the front requests."""

    def __init__(self, launcher: _Launcher, worker: int):
        self.launcher, self.worker, self.front = launcher, worker, os.getppid()
        self.is_scheduler = os.environ["MS_ROLE"] == "MS_SCHED"
        self.reported: Optional[int] = None  # the status
        self.saves_first = False
        self.asked = self.told_to_kill = False
        self.deadline = math.inf
        self.saw_ranks = False  # the scheduler's

    def run(self, requests: int, reports: int, mask: set) -> NoReturn:
        woken, wake = os.pipe()
        os.set_blocking(wake, False)
        for number in (*USER_SIGNALS, RANK_FAILED, RANK_STOPPED, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(wake)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        handlers = {requests: self.handle_request, reports: self.handle_report, woken: self.handle_signals}
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
                self.end_by_force()
        if reports in handlers:
            os.set_blocking(reports, False)
            with suppress(BlockingIOError):
                self.handle_report(os.read(reports, 4096))
        self.end_by_force()  # what the worker started
        code = self.conclude(status)
        if not self.launcher.is_alive():
            _end_log_viewer()
        os._exit(code)

    def wait_seconds(self) -> Optional[float]:
        """How long may be waited for the next event."""
        seconds = max(0.0, self.deadline - time.monotonic())
        if self.is_scheduler:
            seconds = min(seconds, SCHEDULER_PERIOD if self.saw_ranks and not self.asked else 0.2)
        return None if seconds == math.inf else seconds

    def handle_request(self, data: bytes) -> None:
        if KILL in data:
            self.told_to_kill = True
            self.end_by_force()
            return
        self.ask_to_stop(SAVE_SECONDS if self.saves_first else STOP_SECONDS)
        if not data and not self.is_scheduler:
            self.front_was_killed()

    def front_was_killed(self) -> None:
        """msrun does that after another front has failed, and on Ctrl-C. In the latter case it also kills that of the
        scheduler and exits with status 0, which a job script would take for success."""
        time.sleep(0.05)
        if _processes(FRONT_NAME, "MS_SCHED"):
            _print_error(f"process {self.front} was killed; msrun does that when another rank has ended")
        else:
            self.launcher.terminate()

    def handle_report(self, data: bytes) -> None:
        for message in data.decode().splitlines():
            if message.startswith(STATUS):
                self.reported = int(message[len(STATUS):])
                self.end_within(SHUTDOWN_SECONDS)
            else:
                self.saves_first = message == LONG_STOP

    def handle_signals(self, numbers: bytes) -> None:
        if RANK_FAILED in numbers:
            self.told_to_kill = True
            self.end_by_force()
        elif RANK_STOPPED in numbers:
            self.ask_to_stop(STOPPED_SECONDS)
        elif any(number in USER_SIGNALS for number in numbers):
            self.ask_to_stop(SAVE_SECONDS if self.saves_first else STOP_SECONDS)

    def ask_to_stop(self, seconds: float) -> None:
        """Asks the worker to end within so many seconds. The scheduler ends after the ranks."""
        if self.is_scheduler:
            self.asked = True
            return
        self.end_within(seconds)
        if not self.asked:
            self.asked = True
            with suppress(ProcessLookupError):
                os.kill(self.worker, signal.SIGTERM)

    def watch_ranks(self) -> None:
        """The scheduler is not needed once the ranks of this machine, which ended together with all others, are gone."""
        if _processes(SUPERVISOR_NAME):
            self.saw_ranks = True
        elif self.saw_ranks or self.asked:
            self.reported = 0
            self.end_within(0.5 if self.asked else SHUTDOWN_SECONDS)

    def end_within(self, seconds: float) -> None:
        self.deadline = min(self.deadline, time.monotonic() + seconds)

    def end_by_force(self) -> None:
        """Kills the worker and what it started."""
        self.deadline = math.inf
        with suppress(ProcessLookupError):
            os.killpg(self.worker, signal.SIGKILL)

    def conclude(self, status: int) -> int:
        """The exit status, from the worker's wait status. The other ranks are told if this one did not succeed."""
        if self.reported is not None:
            code = self.reported
        elif self.told_to_kill:
            _tell_supervisors(RANK_FAILED)  # the scheduler's may not know
            return KILLED
        elif self.asked and os.WIFSIGNALED(status):
            code = 128 + signal.SIGTERM
        else:
            code = _exit_code(status)
            if os.WIFSIGNALED(status):
                _print_error(_ended_by(status))
        if code in (128 + number for number in USER_SIGNALS):
            _tell_supervisors(RANK_STOPPED)
        elif code != 0:
            _end_other_ranks()
        return code


def _end_other_ranks() -> None:
    """Has the other ranks on this machine ended, and waits a moment for it."""
    _tell_supervisors(RANK_FAILED)
    deadline = time.monotonic() + FAILED_SECONDS
    while _processes(SUPERVISOR_NAME) and time.monotonic() < deadline:
        time.sleep(0.02)


def _end_log_viewer() -> None:
    """Ends the `tail -f` with which msrun showed the log of this rank, once msrun is gone."""
    time.sleep(0.1)  # it shows the last lines
    with suppress(OSError):
        log = os.path.basename(os.readlink("/proc/self/fd/1"))
        for pid in _processes("tail"):
            if os.path.basename(_command_line(pid)[-1]) == log:
                os.kill(pid, signal.SIGTERM)


def _tell_supervisors(number: int) -> None:
    for pid in _processes(SUPERVISOR_NAME):
        with suppress(OSError):
            os.kill(pid, number)


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

    def is_alive(self) -> bool:
        # The number may belong to another process by now, and Z is a process that has ended.
        return _start_time(self.pid) == self.started and _stat_field(self.pid, 0) != "Z"

    def terminate(self) -> None:
        if self.waits and self.is_alive():
            with suppress(OSError):
                os.kill(self.pid, signal.SIGTERM)


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


def fronts_of(msrun: int) -> list[int]:
    """Process ids of the ranks' fronts that a running msrun has started."""
    children = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
                if _name(pid) == FRONT_NAME and _stat_field(pid, 1) == str(msrun)]
    return [pid for pid in children if _run_variables(pid, b"MS_ROLE") == [b"MS_WORKER"]]


def _stat_field(pid: int, index: int) -> Optional[str]:
    """A field of /proc/PID/stat, counted behind the name of the program; None for a process that is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[index]
    return None


def _start_time(pid: int) -> Optional[str]:
    """In clock ticks since the system started."""
    return _stat_field(pid, 19)


def _name(pid: int) -> Optional[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return None


def _processes(name: str, role: str = "") -> list[int]:
    """Process ids of this run on this machine with that name and role (MS_ROLE), except this process."""
    address = _run_variables(os.getpid(), b"MS_SCHED_HOST", b"MS_SCHED_PORT")
    return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
            if pid != os.getpid() and _name(pid) == name
            and _run_variables(pid, b"MS_SCHED_HOST", b"MS_SCHED_PORT") == address
            and (not role or _run_variables(pid, b"MS_ROLE") == [role.encode()])]


def _run_variables(pid: int, *names: bytes) -> list[bytes]:
    """Values from the environment that a process was started with. That of other users' processes is empty."""
    with suppress(OSError):
        variables = dict(entry.partition(b"=")[::2] for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
        return [variables.get(name, b"") for name in names]
    return []


def _exit_code(status: int) -> int:
    """As shells count: 128 and its number for a signal."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _ended_by(status: int) -> str:
    number = os.WTERMSIG(status)
    hint = "; the system does that when memory runs out" if number == signal.SIGKILL else ""
    return f"ended by {signal.Signals(number).name}{hint}"


def rank_name() -> str:
    """How errors name this process under msrun."""
    return "msrun's scheduler" if os.environ["MS_ROLE"] == "MS_SCHED" else f"rank {os.environ.get('RANK_ID', '?')}"


def _print_error(reason: str) -> None:
    # msrun shows the lines of logs that have ERROR in capitals.
    print(f"ERROR in {rank_name()}: {reason}", file=sys.stderr, flush=True)
