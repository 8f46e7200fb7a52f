"""Process control on Linux: parents, names, exit statuses, and the processes that one msrun has started.

This module must not import MindSpore.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Optional

ON_LINUX = sys.platform == "linux"
USER_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
REPEATED_WITHIN = 0.5  # seconds in which a repeated signal is the same request: launchers and shells send it twice
FAILED_SECONDS = 2.0  # a failed rank waits for the others to end, so that msrun sees the failure first

# Of these variables, scripts that start ranks without msrun set one at most.
SET_BY_MSRUN = ("MS_TOPO_TIMEOUT", "RANK_ID", "RANK_SIZE")
RANK_FAILED, RANK_STOPPED = signal.SIGUSR1, signal.SIGUSR2  # from one supervisor to another
FRONT_NAME, SUPERVISOR_NAME = "sora-f-{}", "sora-s-{}"  # names have up to 15 characters
STATE, SESSION, START_TIME = 0, 3, 19  # fields of /proc/PID/stat, counted from the one that follows the program's name


class RankProcesses:
    """The processes that have one parent: msrun, or another program that sets MindSpore's variables.

    Attributes:
        launcher: the process id of the parent.
        launcher_waits: whether it is an msrun that waits for its processes, so that they must not outlive it. False
            if the parent has ended: the kernel clears its command line before the parent changes.
        ranks_here: the least number of ranks on this machine.
        name: identifies the run in the names of its processes.
    """

    def __init__(self, launcher: int):
        self.launcher, self._started = launcher, stat_field(launcher, START_TIME)
        arguments = _command_line(launcher)
        is_msrun = any(
            Path(argument).name == "msrun" or argument.startswith("mindspore.parallel") for argument in arguments[:4]
        )
        self.launcher_waits = is_msrun and flag_value(arguments, "--join").lower() in ("true", "1")
        on_one_machine = os.environ.get("MS_SCHED_HOST", "").startswith("127.")
        self.ranks_here = int(os.environ.get("MS_WORKER_NUM", 1)) if on_one_machine else 1
        self.name = str(launcher) if self.launcher_waits else f"p{os.environ.get('MS_SCHED_PORT', '')[:5]}"

    def launcher_is_alive(self) -> bool:
        # The id may belong to another process by now, and state Z is a process that has ended.
        return stat_field(self.launcher, START_TIME) == self._started and stat_field(self.launcher, STATE) != "Z"

    def launcher_has_died(self) -> bool:
        """Whether this process is a rank of an msrun with --join=True that ended before the process could look.

        A rank of such an msrun stays in its session, or its log is shown by a `tail` (--tail_worker_log). An msrun that
        does not wait makes each rank the leader of a session and shows no logs. Between the start of a rank and that of
        its `tail` nothing tells the two apart; `Supervisor.ranks_are_missing` ends what an msrun killed then leaves.
        """
        return (
            not self.launcher_waits
            and started_by_msrun()
            and os.environ["MS_ROLE"] == "MS_WORKER"
            and (os.getsid(0) != os.getpid() or bool(_log_viewers()))
        )

    def end_launcher(self) -> None:
        if self.launcher_waits and self.launcher_is_alive():
            with suppress(OSError):
                os.kill(self.launcher, signal.SIGTERM)

    def other_supervisors(self) -> list[int]:
        """Process ids of the supervisors on this machine, except this process."""
        return [pid for pid in _named(SUPERVISOR_NAME.format(self.name)) if pid != os.getpid()]

    def signal_supervisors(self, number: int) -> None:
        """Sends a signal to the other supervisors."""
        for pid in self.other_supervisors():
            with suppress(OSError):
                os.kill(pid, number)

    def end_other_ranks(self) -> None:
        """Ends the other ranks on this machine and waits up to `FAILED_SECONDS` for it."""
        self.signal_supervisors(RANK_FAILED)
        deadline = time.monotonic() + FAILED_SECONDS
        while self.other_supervisors() and time.monotonic() < deadline:
            time.sleep(0.02)

    def scheduler_has_front(self) -> bool:
        return any(_role(pid) == "MS_SCHED" for pid in _named(FRONT_NAME.format(self.name)))

    def end_log_viewer(self) -> None:
        """Ends the `tail -f` with which msrun shows the log of this rank, if msrun does not outlive the rank."""
        time.sleep(0.3)  # msrun may end a moment later, and the last lines have to be shown
        if self.launcher_is_alive():
            return
        end_log_viewers()


def started_by_msrun() -> bool:
    """Whether the environment is that of a process of msrun."""
    return all(name in os.environ for name in SET_BY_MSRUN)


def end_log_viewers() -> None:
    """Ends the processes with which msrun shows the log of this rank."""
    for pid in _log_viewers():
        with suppress(OSError):
            os.kill(pid, signal.SIGTERM)


def _log_viewers() -> list[int]:
    """The processes with which msrun shows the log of this rank, its stdout."""
    log = _open_file(os.getpid(), 1)
    viewers = [pid for pid in _named("tail") if _role(pid)]
    return [pid for pid in viewers if any(_open_file(pid, descriptor) == log for descriptor in range(3, 6))]


def fronts_of(msrun: int) -> list[int]:
    """Process ids of the ranks' fronts that a running msrun has started."""
    return [pid for pid in _named(FRONT_NAME.format(msrun)) if _role(pid) == "MS_WORKER"]


def die_with_parent(parent: int, with_signal: int = signal.SIGKILL) -> bool:
    """The kernel sends this process a signal when its parent, whose process id is given, ends.

    Returns:
        False if the parent has ended already, in which case no signal will come.
    """
    if ON_LINUX:
        _prctl(1, int(with_signal))  # PR_SET_PDEATHSIG of linux/prctl.h
    return os.getppid() == parent


def set_name(name: str) -> None:
    """Names this process, up to 15 characters."""
    _prctl(15, name.encode())  # PR_SET_NAME of linux/prctl.h


def _prctl(option: int, value) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def kill_session(session: int) -> None:
    """Kills all processes of a session."""
    for pid in _all_processes():
        if stat_field(pid, SESSION) == str(session):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def flag_value(arguments: list[str], name: str) -> str:
    """The value of a flag, given as `--name=value` or `--name value`; "" without it."""
    for argument, following in zip(arguments, [*arguments[1:], ""]):
        if argument == name:
            return following
        if argument.startswith(f"{name}="):
            return argument[len(name) + 1 :]
    return ""


def stat_field(pid: int, index: int) -> Optional[str]:
    """A field of /proc/PID/stat; None for a process that is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[index]
    return None


def exit_code(status: int) -> int:
    """The exit code of a wait status, as in shells: 128 plus the signal's number for a signal."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def ended_by(status: int) -> str:
    """The signal in a wait status, as errors name it."""
    number = os.WTERMSIG(status)
    hint = "; the system does that when memory runs out" if number == signal.SIGKILL else ""
    return f"ended by {signal.Signals(number).name}{hint}"


def rank_name() -> str:
    """The name of this process in errors under msrun."""
    return "msrun's scheduler" if os.environ["MS_ROLE"] == "MS_SCHED" else f"rank {os.environ.get('RANK_ID', '?')}"


def print_error(reason: str) -> None:
    # msrun shows the lines of logs that have ERROR in capitals.
    print(f"ERROR in {rank_name()}: {reason}", file=sys.stderr, flush=True)


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
