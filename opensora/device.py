"""The one place that chooses where and how the program runs: target, mode, precision, seed, processes.

`add_arguments` gives every entry point the same flags; `setup` applies them once and returns a `Device`.
Branches on `target == "Ascend"` follow MindSpore's documentation and were not run on this project's CPU machines.
"""

from __future__ import annotations

import argparse
import atexit
import ctypes
import os
import random
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import mindspore as ms
import numpy as np

from opensora.config.device import DeviceOptions
from opensora.config.options import add_flags
from opensora.errors import UserError
from opensora.ops.cpu import kernels
from opensora.ops.cpu.build import check_settings
from opensora.utils import supervision
from opensora.utils.stopping import handle_signals

PRECISIONS = {"bf16": ms.bfloat16, "fp16": ms.float16, "fp32": ms.float32}
# A CPU has no bfloat16 arithmetic in MindSpore, and float16 there is slower than float32 and gains nothing.
SUPPORTED_PRECISIONS = {"Ascend": ("bf16", "fp16", "fp32"), "GPU": ("fp16", "fp32"), "CPU": ("fp32",)}


@dataclass(frozen=True)
class Device:
    """Where this process runs. `dtype` is what models run in; `rank` counts processes from 0."""

    target: str
    mode: int
    precision: str
    rank: int = 0
    world_size: int = 1

    @property
    def dtype(self):
        return PRECISIONS[self.precision]

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `DeviceOptions`."""
    add_flags(parser, DeviceOptions)


def setup(args: argparse.Namespace) -> Device:
    """Applies the flags of `add_arguments` to MindSpore. Called once, before any tensor is made.

    Raises:
        UserError: the target is not on this machine, --use_parallel without msrun, `OPENSORA_MARCH` not of this CPU, or
            processes that would compute differently (`kernels.check_ranks_agree`).
    """
    target = args.device or default_target()
    if not ms.hal.is_available(target):
        raise UserError(f"--device {target}: this MindSpore finds no such device here; use --device {default_target()}")
    if target == "CPU":
        check_settings()
    _choose_target(target)
    _launch_in_place(target)
    ms.set_context(mode=args.mode)
    if args.jit_level:
        ms.set_context(jit_config={"jit_level": args.jit_level})
    if args.max_device_memory:
        ms.runtime.set_memory(max_size=args.max_device_memory)
    rank, world_size = join_processes() if args.use_parallel else (0, 1)
    handle_signals()  # MindSpore installs handlers that end the process at once
    precision = choose_precision(target, args.precision, quiet=rank > 0)
    set_seed(args.seed)
    return Device(target, args.mode, precision, rank, world_size)


def _choose_target(target: str) -> None:
    """As `ms.set_device`, which refuses even the target in use once an operator has run, as in a notebook."""
    in_use = ms.get_context("device_target")
    try:
        ms.set_device(target)
    except RuntimeError as error:
        if target != in_use:
            raise UserError(f"--device {target}: this process already computes on {in_use}; start another") from error


def default_target() -> str:
    """Ascend where this machine has one (asking MindSpore first would print warnings where it has none), else CPU."""
    has_npu = any(Path("/dev").glob("davinci[0-9]*"))
    return "Ascend" if has_npu and ms.hal.is_available("Ascend") else "CPU"


def choose_precision(target: str, wanted: Optional[str], quiet: bool = False) -> str:
    """The precision to run in; one the target cannot run becomes fp32, and that is said."""
    supported = SUPPORTED_PRECISIONS[target]
    if wanted is None:
        return supported[0]
    if wanted in supported:
        return wanted
    if not quiet:
        print(f"note: a {target} does not run {wanted} here; running fp32 instead", file=sys.stderr)
    return "fp32"


def set_seed(seed: int) -> None:
    """Seeds MindSpore, numpy and Python."""
    ms.set_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


def join_processes() -> tuple[int, int]:
    """Joins the group of processes that msrun started; returns (rank, number of processes)."""
    if "MS_WORKER_NUM" not in os.environ:
        raise UserError(
            "--use_parallel True needs msrun, as in: "
            "msrun --worker_num=2 --local_worker_num=2 --join=True opensora/sample/sample.py ..."
        )
    try:
        ms.communication.init()
    except RuntimeError as error:
        raise UserError(_why_not_joined(str(error))) from error
    from opensora.parallel.collectives import barrier  # which needs this module

    size = ms.communication.get_group_size()
    supervision.meet_at_end(lambda: barrier(size))
    atexit.register(_leave)
    if ms.get_context("device_target") == "CPU":
        kernels.check_ranks_agree()
    return ms.communication.get_rank(), size


def _leave() -> None:
    """Leaves the group of processes: the scheduler takes one that just ends for a lost one.

    What was printed goes out first: MindSpore may end the process while it leaves.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    ms.communication.release()


def _why_not_joined(error: str) -> str:
    """MindSpore's many lines in one, with what to do."""
    reason = error.split(". ")[0].splitlines()[0]
    if "imed out node" in error:  # the scheduler, which waits here for the end of the run
        return f"a process ended before the run did; its log, worker_*.log, says why ({reason})"
    address = ":".join(os.environ.get(name, "?") for name in ("MS_SCHED_HOST", "MS_SCHED_PORT"))
    return (
        f"the processes of this run cannot meet at {address}: most likely another run, or what is left of one, has "
        f"that port; choose another --master_port for msrun ({reason})"
    )


def _launch_in_place(target: str) -> None:
    """On a CPU, run each operator in the thread that calls it.

    MindSpore hands operators from thread to thread to keep an accelerator busy. On two cores the handing over costs
    more than it hides: decoding with WFVAE takes a third of the time without, a small transformer an eighth.
    """
    if target == "CPU":
        ms.runtime.launch_blocking()


def _keep_freed_memory() -> None:
    """Lets the C library keep some hundred MB of what is freed, where it is glibc.

    It gives pieces of a megabyte back to the system at once, and gets them anew page by page. Kernels and oneDNN take
    and free such pieces in every call: encoding with WFVAE takes a fifth more time.
    """
    trim_threshold, mmap_threshold = -1, -3  # names of malloc.h
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(trim_threshold, 256 << 20)
        library.mallopt(mmap_threshold, 32 << 20)


@ms.ops.constexpr
def on_ascend() -> bool:
    """True where operators of Ascend can be used; decides the body of the primitives in `opensora.ops`.

    A constant to the compiler of graph mode.
    """
    return ms.get_context("device_target") == "Ascend"


# For those who use the models without `setup`.
_launch_in_place(default_target())
if default_target() == "CPU":
    _keep_freed_memory()
