"""Runs a command and measures its memory, reads and log lines. Needs Linux.

Memory is that of the command and all its children, as the kernel counts it: anonymous pages, which are the command's
data, and pages of mapped files, which the kernel may drop and read again. Pages that processes share count for each.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

ERROR = re.compile(r"(error|\w+(Error|Exception)): ")  # of a command of this project, or at the end of a traceback
INTERVAL = 0.05  # seconds between two measurements
# Folder of this process's cgroup with a memory limit, files of the limit and the peak, for version 1 and 2.
CGROUPS = (
    (
        re.compile(r"^\d+:memory:(.*)$", re.M),
        "/sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.max_usage_in_bytes",
    ),
    (re.compile(r"^0::(.*)$", re.M), "/sys/fs/cgroup", "memory.max", "memory.peak"),
)
KILL_FILES = ("memory.oom_control", "memory.events")  # hold a line "oom_kill N"


@dataclass
class Usage:
    """Peaks in bytes and times of a command.

    Attributes:
        resident: anonymous and file pages together.
        anonymous, file: each of them; the peaks may be at different times.
        read: bytes read from the disk.
        limited_peak: peak of the cgroup, with the page cache; None without a limit.
        seconds: the whole command.
        status: its exit status, negative for a signal.
        oom_kills: processes that the kernel killed because of the limit.
        lines: lines of stderr with the seconds after the start at which they began.
    """

    resident: int = 0
    anonymous: int = 0
    file: int = 0
    read: int = 0
    limited_peak: Optional[int] = None
    seconds: float = 0.0
    status: int = 0
    oom_kills: int = 0
    lines: list[tuple[float, str]] = field(default_factory=list)

    def failure(self) -> str:
        """Why the command failed; empty if it did not."""
        if not self.status:
            return ""
        if self.oom_kills:
            return "killed, out of memory"
        if self.status < 0:
            return f"killed by {signal.Signals(-self.status).name}"
        words = [text for _, text in self.lines if text.strip()]
        reason = next((text for text in reversed(words) if ERROR.match(text)), words[-1] if words else "")
        return f"status {self.status}: {reason[:200]}"


def watch(command: Sequence[str], cwd: Path, limit: Optional[float] = None) -> Usage:
    """Runs a command to its end.

    Args:
        command: program and arguments; its stdout is discarded.
        cwd: its current folder.
        limit: bytes of memory of a cgroup for it. Ignored if this process cannot create one, see `can_limit`.
    """
    usage = Usage()
    with _limited(limit) as group:
        if group:  # the shell joins the group before it becomes the command
            command = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"), *command]
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        reader = threading.Thread(target=_read_lines, args=(process, start, usage.lines))
        reader.start()
        try:
            read: dict[int, int] = {}
            while process.poll() is None:
                _measure(process.pid, usage, read)
                time.sleep(INTERVAL)
        finally:
            process.kill()
            reader.join()
        usage.seconds, usage.status = time.perf_counter() - start, process.wait()
        usage.read = sum(read.values())
        if group:
            usage.limited_peak = _number(group / _limit_files(group)[1])
            usage.oom_kills = _oom_kills(group)
    return usage


def can_limit() -> bool:
    """Whether this process can create a cgroup with a memory limit."""
    with _limited(1e12) as group:
        return group is not None


@contextmanager
def _limited(limit: Optional[float]) -> Iterator[Optional[Path]]:
    """A new cgroup in that of this process, removed at the end; None without a limit or a right to create one."""
    group = _new_group(limit) if limit else None
    try:
        yield group
    finally:
        if group:
            for _ in range(100):  # the kernel needs a moment to empty it
                with suppress(OSError):
                    group.rmdir()
                    break
                time.sleep(0.05)


def _new_group(limit: float) -> Optional[Path]:
    own = Path("/proc/self/cgroup").read_text(encoding="ascii")
    for pattern, root, limit_file, _ in CGROUPS:
        found = pattern.search(own)
        if not found:
            continue
        group = Path(f"{root}{found[1]}") / f"opensora-{os.getpid()}-{time.monotonic_ns()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            (group / limit_file).write_text(str(int(limit)), encoding="ascii")
            return group
        except OSError:  # the memory controller is not available in this group
            group.rmdir()
    return None


def _limit_files(group: Path) -> tuple[str, str]:
    return next((limit, peak) for _, _, limit, peak in CGROUPS if (group / limit).exists())


def _number(path: Path) -> Optional[int]:
    with suppress(OSError, ValueError):  # memory.peak is missing before Linux 5.19
        return int(path.read_text(encoding="ascii"))
    return None


def _oom_kills(group: Path) -> int:
    for name in KILL_FILES:
        if (group / name).exists():
            found = re.search(r"^oom_kill (\d+)", (group / name).read_text(encoding="ascii"), re.M)
            return int(found[1]) if found else 0
    return 0


def _read_lines(process: subprocess.Popen, start: float, lines: list[tuple[float, str]]) -> None:
    """Collects the lines of stderr and when they began; a progress bar begins its lines with a carriage return."""
    assert process.stderr
    rest, began = b"", 0.0
    while data := os.read(process.stderr.fileno(), 1 << 16):
        now = time.perf_counter() - start
        began = began if rest else now
        *complete, rest = re.split(rb"[\r\n]+", rest + data)
        for text in complete:
            lines.append((began, text.decode(errors="replace")))
            began = now
    if rest:
        lines.append((began, rest.decode(errors="replace")))
    process.stderr.close()


def _measure(root: int, usage: Usage, read: dict[int, int]) -> None:
    """Updates the peaks, and the bytes read by each process."""
    total = {"RssAnon": 0, "RssFile": 0, "RssShmem": 0}
    for pid in _tree(root):
        with suppress(OSError):  # it ended
            for key, value in _fields(Path(f"/proc/{pid}/status")).items():
                if key in total:
                    total[key] += int(value.split()[0]) * 1024
            read[pid] = int(_fields(Path(f"/proc/{pid}/io"))["read_bytes"])
    usage.anonymous = max(usage.anonymous, total["RssAnon"] + total["RssShmem"])
    usage.file = max(usage.file, total["RssFile"])
    usage.resident = max(usage.resident, sum(total.values()))


def _fields(path: Path) -> Mapping[str, str]:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _tree(root: int) -> list[int]:
    """A process and its descendants."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # The name of the program, in parentheses, may contain anything; the state and the parent follow it.
            parent = int(path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    tree = [root]
    for pid in tree:  # grows while it is read
        tree.extend(children.get(pid, ()))
    return tree
