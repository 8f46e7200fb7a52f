"""Builds the C++ kernels with g++, once for each source, compiler and CPU."""
from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Optional

from opensora.utils.files import atomic_write

SOURCE = Path(__file__).parent / "src"
COMPILER = "g++"
# Arithmetic stays IEEE's but for what lets loops be vectorised: no errno, no traps; sums that may be rearranged are
# marked in the sources.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-std=c++14", "-shared", "-fPIC", "-ldl",
         *(["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else []))
SWITCH = "OPENSORA_CPU_KERNELS"  # in the environment; 0: stock operators only


@lru_cache(maxsize=1)
def shared_library() -> Optional[Path]:
    """The shared library, built if it is not there yet; None, with a note, where that cannot be done."""
    if os.environ.get(SWITCH) == "0":
        return None
    compiler = shutil.which(COMPILER)
    if compiler is None:
        return _without(f"{COMPILER} was not found")
    path = cache_folder() / f"kernels-{key(compiler)}.so"
    if path.exists():
        return path
    print("building the CPU kernels, once (some 20 s)", file=sys.stderr, flush=True)
    try:
        with atomic_write(path) as temporary:
            sources = sorted(map(str, SOURCE.glob("*.cc")))
            built = subprocess.run([compiler, *FLAGS, *sources, "-o", str(temporary)], capture_output=True, text=True)
            if built.returncode:
                return _without((built.stderr.strip().splitlines() or [f"{COMPILER} failed"])[0])
    except OSError as error:
        return _without(f"{path.parent}: {error.strerror}")
    return path


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/opensora, by default ~/.cache/opensora."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opensora"


def key(compiler: str) -> str:
    """Changes with the sources, the flags, the compiler's version and the CPU's abilities."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for path in sorted(SOURCE.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    digest.update(subprocess.run([compiler, "--version"], capture_output=True).stdout)
    digest.update(_cpu().encode())
    return digest.hexdigest()[:16]


def _cpu() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return platform.machine() + "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model"))}))


def _without(reason: str) -> None:
    print(f"note: no fused CPU kernels ({reason}); stock operators are used, which are slower", file=sys.stderr)
