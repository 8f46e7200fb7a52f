"""Memory, disk, ports and limits of processes."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import tempfile
from collections.abc import Iterable
from pathlib import Path

from opensora.doctor import ascend
from opensora.doctor.checks import FAILED, OK, WARNING, Result, Rows, Settings
from opensora.utils.memory import cgroup_limit

GB = 1 << 30
PORTS = {8118: "msrun's default --master_port", 9000: "the default PORT of scripts/"}
HCCL_PORTS = range(60000, 60032)  # HCCL's default; CANN before 8.5 uses the first 16
LEAST_FREE_GB = 1  # of a disk that results, checkpoints or temporary files are written to
FEW_FREE_GB = 20
LEAST_FILES = 4096  # open files: data workers, sockets of HCCL and shards of checkpoints


def rows(settings: Settings) -> Rows:
    return {
        "memory": lambda: memory_result(Path("/proc/meminfo").read_text(), cgroup_limit()),
        "disk": lambda: disk_result(disks()),
        "ports": lambda: ports_result(os.environ.get("MS_SCHED_PORT", "")),
        "limits": lambda: limits_result(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    }


def memory_result(meminfo: str, limit: int) -> Result:
    """Memory of the host, from /proc/meminfo (in kB), and of the container."""
    fields = {
        name: int(value.split()[0]) << 10
        for name, _, value in (line.partition(":") for line in meminfo.splitlines())
        if value.split()
    }
    total, available = fields["MemTotal"], fields["MemAvailable"]
    numbers = {"total": total, "available": available, "limit": limit, "cores": len(os.sched_getaffinity(0))}
    shown = f"{total / GB:.1f} GB, {available / GB:.1f} GB available, {numbers['cores']} cores"
    if limit:
        shown += f", limited to {limit / GB:.1f} GB"
    if available < 2 * GB:
        return Result(WARNING, shown, "end other programs: less than 2 GB are available", numbers)
    return Result(OK, shown, numbers=numbers)


def disks() -> dict[str, Path]:
    """The folders that are written to."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return {"current folder": Path.cwd(), "temporary files": Path(tempfile.gettempdir()), "cache": Path(cache)}


def disk_result(folders: dict[str, Path]) -> Result:
    free = {name: shutil.disk_usage(_existing(path)).free for name, path in folders.items()}
    shown = ", ".join(f"{name} {size / GB:.0f} GB" for name, size in free.items()) + " free"
    least = min(free, key=lambda name: free[name])
    if free[least] < LEAST_FREE_GB * GB:
        return Result(FAILED, shown, f"free space for the {least}: less than {LEAST_FREE_GB} GB is left", free)
    if free["current folder"] < FEW_FREE_GB * GB:
        remedy = "checkpoints of the released model need tens of GB: write them to another disk, with --output_dir"
        return Result(WARNING, shown, remedy, free)
    return Result(OK, shown, numbers=free)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def ports_result(own: str, ports: Iterable[int] = PORTS, proc: Path = Path("/proc/sys/net/ipv4")) -> Result:
    """Whether the ports of msrun and HCCL are free. `own`: the port of the msrun that runs this."""
    taken = [port for port in ports if str(port) != own and not is_free(port)]
    numbers = {"taken": taken}
    if taken:
        uses = ", ".join(f"{port} ({PORTS.get(port, 'asked for')})" for port in taken)
        return Result(
            WARNING, f"in use: {uses}", "pass another --master_port to msrun, or set PORT for scripts/", numbers
        )
    shown = f"{', '.join(map(str, ports))} are free"
    if ascend.device_numbers() and not hccl_ports_reserved(proc):
        remedy = f"sysctl -w net.ipv4.ip_local_reserved_ports={HCCL_PORTS[0]}-{HCCL_PORTS[-1]}"
        return Result(WARNING, f"{shown}; the system may give the ports of HCCL to other programs", remedy, numbers)
    return Result(OK, shown, numbers=numbers)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def hccl_ports_reserved(proc: Path) -> bool:
    """Whether no other program is given HCCL's ports: they are outside the range of ephemeral ports, or reserved."""
    try:
        first, last = map(int, (proc / "ip_local_port_range").read_text().split())
        reserved = (proc / "ip_local_reserved_ports").read_text().strip()
    except (OSError, ValueError):
        return True
    spans = [tuple(map(int, span.split("-"))) for span in reserved.split(",") if span]
    return all(not first <= port <= last or any(span[0] <= port <= span[-1] for span in spans) for port in HCCL_PORTS)


def limits_result(files: int) -> Result:
    """Limits of `ulimit`; `files`: the soft limit of open files."""
    kinds = {
        "processes": resource.RLIMIT_NPROC,
        "stack": resource.RLIMIT_STACK,
        "locked memory": resource.RLIMIT_MEMLOCK,
    }
    numbers = {"open files": files, **{name: resource.getrlimit(kind)[0] for name, kind in kinds.items()}}
    shown = ", ".join(
        f"{name} {'unlimited' if value == resource.RLIM_INFINITY else value}" for name, value in numbers.items()
    )
    if files != resource.RLIM_INFINITY and files < LEAST_FILES:
        return Result(
            WARNING, shown, f"ulimit -n {LEAST_FILES} or more: data workers and sockets need open files", numbers
        )
    return Result(OK, shown, numbers=numbers)
