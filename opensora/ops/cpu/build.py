"""Compiles the C++ kernels with g++ at their first use and caches the shared library.

The cache is `$XDG_CACHE_HOME/opensora` (by default `~/.cache/opensora`). The file name contains a hash of the sources,
flags, compiler and CPU. Loading a library executes code from it. So a cached library is loaded only if no other user
can have written it and if it is intact: a SHA-256 checksum of the preceding bytes is appended to it.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import platform
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, Optional

from opensora.errors import UserError
from opensora.utils.files import atomic_write
from opensora.utils.logs import logger

SOURCE = Path(__file__).parent / "src"
COMPILER = "g++"
# No -ffast-math: only errno and trap semantics are dropped, so that loops vectorize. Sums that may be reassociated are
# marked in the sources (`omp simd reduction`).
FLAGS = (
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp",
    "-std=c++14",
    "-shared",
    "-fPIC",
    *(["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else []),
)
SWITCH = "OPENSORA_CPU_KERNELS"  # environment variable; 0 disables the kernels
MARCH = "OPENSORA_MARCH"  # environment variable; instruction set, a value of g++'s -march
CHECKSUM = b"SHA-256 of the bytes before: "  # dynamic loaders ignore data after the last section of a library
COMPILE_SECONDS = 900


class Library(NamedTuple):
    """The loaded kernels. Libraries with the same key compute the same results."""

    path: Path
    key: str
    functions: ctypes.CDLL


@lru_cache(maxsize=1)
def library() -> Optional[Library]:
    """The kernels, compiled at the first call; None if that fails (with a note on stderr) or `OPENSORA_CPU_KERNELS=0`.

    Raises:
        UserError: `OPENSORA_MARCH` is not an instruction set of this CPU.
    """
    if os.environ.get(SWITCH) == "0":
        return None
    try:
        return build_kernels()
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning(f"no fused CPU kernels ({error}); using stock operators, which are slower")
        return None


def build_kernels() -> Library:
    """Loads the kernels from the cache; compiles them first if they are missing or corrupt.

    Processes that need the same library at the same time compile it once. If the user's cache cannot be used, falls
    back to `$TMPDIR/opensora-UID`, with a note on stderr.

    Raises:
        UserError: `OPENSORA_MARCH` is not an instruction set of this CPU.
        OSError: There is no compiler, or neither folder can be used.
        subprocess.SubprocessError: The compiler failed.
    """
    compiler = shutil.which(COMPILER)
    if compiler is None:
        raise FileNotFoundError(f"{COMPILER} was not found")
    march = instruction_set(compiler)
    name = key(compiler, march)
    unusable = []
    for folder in _cache_folders():
        try:
            _make_private(folder)
            found = _load_or_compile(folder / f"kernels-{name}.so", compiler, march, name)
        except OSError as error:
            unusable.append(_reason(folder, error))
        else:
            for reason in unusable:
                logger.warning(f"{reason}; the CPU kernels are cached in {folder} instead")
            return found
    raise OSError("; ".join(unusable))


def instruction_set(compiler: str) -> str:
    """The value for g++'s -march: `OPENSORA_MARCH`, by default "native", all features of this CPU.

    Raises:
        UserError: g++ does not know the value, or this CPU lacks one of its features: the process would get SIGILL.
    """
    march = os.environ.get(MARCH) or "native"
    if march == "native":
        return march
    wanted = _features(compiler, march) if re.fullmatch("[a-z0-9][a-z0-9.+_-]*", march) else None
    remedy = "unset it to use all features of this CPU, or use a value of g++'s -march, such as x86-64-v3"
    if wanted is None:
        raise UserError(f"{MARCH}={march}: {COMPILER} does not know this instruction set; {remedy}")
    missing = sorted(wanted - (_features(compiler, "native") or set()))
    if missing:
        raise UserError(
            f"{MARCH}={march}: this CPU lacks {', '.join(name.strip('_') for name in missing[:5])}; {remedy}"
        )
    return march


def check_settings() -> None:
    """Raises UserError for an invalid `OPENSORA_MARCH`, without compiling: early, before models are loaded."""
    compiler = shutil.which(COMPILER)
    if compiler is not None and os.environ.get(SWITCH) != "0":
        instruction_set(compiler)


def _features(compiler: str, march: str) -> Optional[set[str]]:
    """Macros that g++ defines for an instruction set, such as __AVX2__; None if g++ does not know it."""
    shown = subprocess.run(
        [compiler, f"-march={march}", "-dM", "-E", "-x", "c++", os.devnull], capture_output=True, text=True
    )
    return None if shown.returncode else set(re.findall("^#define (__[A-Z0-9_]+) 1$", shown.stdout, re.MULTILINE))


def key(compiler: str, march: str) -> str:
    """Hash of the sources, flags, compiler version, instruction set and, if that is "native", the CPU."""
    digest = hashlib.sha256(" ".join([*FLAGS, march]).encode())
    for path in sorted(SOURCE.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    digest.update(subprocess.run([compiler, "--version"], capture_output=True).stdout)
    if march == "native":
        digest.update(_cpu().encode())
    return digest.hexdigest()[:16]


def _cpu() -> str:
    """The properties of the CPU that `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return platform.machine() + "".join(
        sorted({line for line in lines if line.startswith(("flags", "Features", "model"))})
    )


def _cache_folders() -> Iterator[Path]:
    """Cache folders in order of preference."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    if os.path.isabs(cache):  # "~" is not expanded without HOME and without an entry in passwd
        yield Path(cache) / "opensora"
    yield Path(tempfile.gettempdir()) / f"opensora-{os.geteuid()}"


def _make_private(folder: Path) -> None:
    """Creates the folder; raises OSError unless it is owned and writable by this user only and allows execution."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if os.geteuid() != status.st_uid or os.geteuid() != folder.lstat().st_uid:
        raise PermissionError("belongs to another user")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError("can be written by other users (fix with chmod go-w)")
    if os.statvfs(folder).f_flag & os.ST_NOEXEC:
        raise PermissionError("is on a file system mounted noexec")


def _load_or_compile(path: Path, compiler: str, march: str, name: str) -> Library:
    try:
        return _load(path, name)
    except OSError:
        pass  # missing, corrupt or not ours: replaced below
    with _locked(path.with_suffix(".lock")):
        try:
            return _load(path, name)  # another process may have compiled it in the meantime
        except OSError:
            _compile(path, compiler, march)
        return _load(path, name)


def _load(path: Path, name: str) -> Library:
    """Raises OSError if the file is missing, corrupt, writable by other users, or not loadable."""
    status = path.lstat()
    if (
        not stat.S_ISREG(status.st_mode)
        or status.st_uid != os.geteuid()
        or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        raise PermissionError(f"{path.name} can be written by other users")
    content = path.read_bytes()
    end = len(content) - hashlib.sha256().digest_size
    if content[end:] != hashlib.sha256(content[:end]).digest():
        raise OSError(f"{path.name} is corrupt")  # mapping a truncated library would kill the process with SIGBUS
    return Library(path, name, ctypes.CDLL(str(path)))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock between processes; the system releases it if the process ends."""
    with open(path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.warning("waiting for another process that is building the CPU kernels")
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            pass  # file system without locks: processes may compile at the same time, and the last rename wins
        yield


def _compile(path: Path, compiler: str, march: str) -> None:
    logger.info("building the CPU kernels, once (about 20 s)")
    with atomic_write(path) as temporary:
        sources = sorted(map(str, SOURCE.glob("*.cc")))
        built = subprocess.run(
            [compiler, f"-march={march}", *FLAGS, *sources, "-o", str(temporary), "-ldl"],
            capture_output=True,
            text=True,
            timeout=COMPILE_SECONDS,
        )
        if built.returncode:
            raise subprocess.SubprocessError((built.stderr.strip().splitlines() or [f"{COMPILER} failed"])[0])
        content = temporary.read_bytes() + CHECKSUM
        temporary.write_bytes(content + hashlib.sha256(content).digest())
        temporary.chmod(0o700)


def _reason(folder: Path, error: OSError) -> str:
    return f"{folder}: {error.strerror or error}"
