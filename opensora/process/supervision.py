"""Supervision of the processes that msrun starts.

msrun of MindSpore 2.7 ends at once on SIGTERM and leaves its processes running, kills them without warning on Ctrl-C
and then exits with status 0, and takes a crash while MindSpore shuts down for a failure of work that was done. So
each process that msrun starts becomes three before MindSpore is imported:

    front         the process that msrun knows. It passes signals on and exits with the supervisor's status.
    supervisor    has a session of its own, so that msrun cannot kill it together with the front. It asks the worker to
                  stop when the front gets a signal or dies, allows it a limited time, and ends what is left of it. Its
                  exit status is what the worker reported after its work, whatever happens while MindSpore shuts down.
    worker        imports MindSpore and does the work. The kernel kills it if the supervisor dies.

Supervisors of one run on one machine find each other by their names, which end with the process id of msrun. If a
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
FRONT_NAME, SUPERVISOR_NAME = "sora-f-{}", "sora-s-{}"  # names have up to 15 characters
STATE, SESSION, START_TIME = 0, 3, 19  # fields of /proc/PID/stat, counted behind the name of the program
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
    run = _Run(os.getppid())
    received = {*USER_SIGNALS, LAUNCHER_DIED, signal.SIGCHLD}
    received = {number for number in received if signal.getsignal(number) != signal.SIG_IGN}  # nohup
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, received)
    requests, front_end = os.pipe()
    supervisor = os.fork()
    if supervisor == 0:
        os.close(front_end)
        _be_supervisor(run, requests, mask)
        return  # in the worker
    os.close(requests)
    _set_name(FRONT_NAME.format(run.launcher))
    if run.launcher_waits:
        with suppress(OSError):
            # msrun asks without a pause whether its processes have ended, which takes a core from them.
            os.setpriority(os.PRIO_PROCESS, run.launcher, 10)
    if run.launcher_waits and not die_with_parent(run.launcher, LAUNCHER_DIED):
        os.write(front_end, STOP)
    _pass_signals_on(run, supervisor, received, front_end)


def _pass_signals_on(run: _Run, supervisor: int, received: set, front_end: int) -> NoReturn:
    asked_at = None
    while True:
        number = signal.sigwait(received)
        if number == signal.SIGCHLD:
            pid, status = os.waitpid(supervisor, os.WNOHANG)
            if pid:
                if os.WIFSIGNALED(status):
                    for left in _all_processes():
                        if _stat_field(left, SESSION) == str(supervisor):  # in the supervisor's session
                            os.kill(left, signal.SIGKILL)
                    _print_error(f"its supervising process was {_ended_by(status)}")
                    run.end_other_ranks()
                os._exit(_exit_code(status))
            continue
        repeated = asked_at is not None and time.monotonic() - asked_at > REPEATED_WITHIN
        asked_at = asked_at or time.monotonic()
        with suppress(BrokenPipeError):
            os.write(front_end, KILL if repeated and number in USER_SIGNALS else STOP)


# The supervisor -------------------------------------------------------------------------------------------------------


def _be_supervisor(run: _Run, requests: int, mask: set) -> None:
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
    _set_name(SUPERVISOR_NAME.format(run.launcher))
    _Supervisor(run, worker).supervise(requests, reports, mask)


class _Supervisor:
    """Waits for the worker, for what the worker reports and for what the front requests."""

    def __init__(self, run: _Run, worker: int):
        self.run, self.worker, self.front = run, worker, os.getppid()
        self.is_scheduler = os.environ["MS_ROLE"] == "MS_SCHED"
        self.reported: Optional[int] = None  # the status
        self.saves_first = False
        self.asked = self.told_to_kill = False
        self.deadline = math.inf
        self.saw_ranks = False  # the scheduler's

    def supervise(self, requests: int, reports: int, mask: set) -> NoReturn:
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
        if self.asked:
            self.run.end_log_viewer()
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
        if self.run.scheduler_has_front():
            _print_error(f"process {self.front} was killed; msrun does that when another rank has ended")
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
        """The scheduler is not needed once the ranks of this machine, which end together with all others, are gone."""
        if self.run.other_supervisors():
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
            self.run.tell_supervisors(RANK_FAILED)  # the scheduler's may not know
            return KILLED
        elif self.asked and os.WIFSIGNALED(status):
            code = 128 + signal.SIGTERM
        else:
            code = _exit_code(status)
            if os.WIFSIGNALED(status):
                _print_error(_ended_by(status))
        if code in (128 + number for number in USER_SIGNALS):
            self.run.tell_supervisors(RANK_STOPPED)
        elif code != 0:
            self.run.end_other_ranks()
        return code


# The run and its processes --------------------------------------------------------------------------------------------


class _Run:
    """The processes that have one parent: msrun, or whatever else set MindSpore's variables.

    Attributes:
        launcher: the process id of the parent.
        launcher_waits: whether it is an msrun that waits for its processes, so that they must not outlive it.
    """

    def __init__(self, launcher: int):
        self.launcher, self._started = launcher, _stat_field(launcher, START_TIME)
        arguments = _command_line(launcher)
        is_msrun = any(
            Path(argument).name == "msrun" or argument.startswith("mindspore.parallel") for argument in arguments[:4]
        )
        self.launcher_waits = is_msrun and flag_value(arguments, "--join").lower() in ("true", "1")

    def launcher_is_alive(self) -> bool:
        # The number may belong to another process by now, and Z is a process that has ended.
        return _stat_field(self.launcher, START_TIME) == self._started and _stat_field(self.launcher, STATE) != "Z"

    def end_launcher(self) -> None:
        if self.launcher_waits and self.launcher_is_alive():
            with suppress(OSError):
                os.kill(self.launcher, signal.SIGTERM)

    def other_supervisors(self) -> list[int]:
        """Process ids of the supervisors on this machine, except this process."""
        return [pid for pid in _named(SUPERVISOR_NAME.format(self.launcher)) if pid != os.getpid()]

    def tell_supervisors(self, number: int) -> None:
        for pid in self.other_supervisors():
            with suppress(OSError):
                os.kill(pid, number)

    def end_other_ranks(self) -> None:
        """Has the other ranks on this machine ended, and waits a moment for it."""
        self.tell_supervisors(RANK_FAILED)
        deadline = time.monotonic() + FAILED_SECONDS
        while self.other_supervisors() and time.monotonic() < deadline:
            time.sleep(0.02)

    def scheduler_has_front(self) -> bool:
        return any(_role(pid) == "MS_SCHED" for pid in _named(FRONT_NAME.format(self.launcher)))

    def end_log_viewer(self) -> None:
        """Ends the `tail -f` with which msrun shows the log of this rank, if msrun does not outlive the rank."""
        time.sleep(0.3)  # msrun may end a moment later, and the last lines have to be shown
        if self.launcher_is_alive():
            return
        log = _open_file(os.getpid(), 1)
        for pid in _named("tail"):
            if _role(pid) and any(_open_file(pid, descriptor) == log for descriptor in range(3, 6)):
                with suppress(OSError):
                    os.kill(pid, signal.SIGTERM)


def fronts_of(msrun: int) -> list[int]:
    """Process ids of the ranks' fronts that a running msrun has started."""
    return [pid for pid in _named(FRONT_NAME.format(msrun)) if _role(pid) == "MS_WORKER"]


def _all_processes() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _named(name: str) -> list[int]:
    found = []
    for pid in _all_processes():
        with suppress(OSError):
            if Path(f"/proc/{pid}/comm").read_text() == f"{name}\n":
                found.append(pid)
    return found


def _role(pid: int) -> str:
    """MS_ROLE in the environment that a process was started with; "" also for processes of other users."""
    with suppress(OSError):
        for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if variable.startswith(b"MS_ROLE="):
                return variable[len(b"MS_ROLE=") :].decode()
    return ""


def _open_file(pid: int, descriptor: int) -> Optional[str]:
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/fd/{descriptor}")
    return None


def _command_line(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
    return []


def flag_value(arguments: list[str], name: str) -> str:
    """The value of a flag, given as `--name=value` or `--name value`; "" without it."""
    for argument, following in zip(arguments, [*arguments[1:], ""]):
        if argument == name:
            return following
        if argument.startswith(f"{name}="):
            return argument[len(name) + 1 :]
    return ""


def _stat_field(pid: int, index: int) -> Optional[str]:
    """A field of /proc/PID/stat; None for a process that is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[index]
    return None


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
