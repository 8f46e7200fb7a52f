"""Memory of this machine and of this process, from Linux's /proc and cgroups."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Optional

# The limit and the use of a container's memory: cgroup v2, then v1. Inside a container its own cgroup is mounted there.
CGROUPS = (
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
)
NO_LIMIT = 1 << 60  # bytes; cgroup v1 writes a number of this size where there is no limit


def cgroup_limit(path: Path = CGROUPS[0][0]) -> int:
    """The memory limit of the container in bytes; 0 without one."""
    with suppress(OSError, ValueError):
        limit = int(path.read_text())
        return limit if limit < NO_LIMIT else 0
    return 0


def available_memory() -> Optional[int]:
    """Bytes that this process can use, including those that it uses now; None where /proc does not tell."""
    with suppress(OSError, KeyError, ValueError):
        available = _fields(Path("/proc/meminfo"))["MemAvailable"]
        for limit_path, used_path in CGROUPS:
            limit = cgroup_limit(limit_path)
            if limit:
                available = min(available, limit - int(used_path.read_text()))
        return max(available, 0) + process_memory()
    return None


def process_memory(peak: bool = False) -> int:
    """Bytes of memory that this process occupies, or that it occupied at most; 0 where /proc does not tell."""
    with suppress(OSError, KeyError, ValueError):
        return _fields(Path("/proc/self/status"))["VmHWM" if peak else "VmRSS"]
    return 0


def _fields(path: Path) -> dict[str, int]:
    """The lines `Name: NUMBER kB` of a file, in bytes."""
    lines = (line.partition(":") for line in path.read_text().splitlines())
    return {name: int(value.split()[0]) << 10 for name, _, value in lines if value.endswith(" kB")}
