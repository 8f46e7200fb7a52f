"""The one place that chooses where and how the program runs: target, mode, precision, seed, processes.

`add_arguments` gives every entry point the same flags; `setup` applies them once and returns a `Device`. Importing this
module changes nothing. Branches on `target == "Ascend"` follow MindSpore's documentation and were not run on this
project's CPU machines.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import mindspore as ms
import numpy as np

from opensora.config.device import DeviceOptions
from opensora.config.options import add_flags
from opensora.config.versions import warn_if_untested
from opensora.errors import UserError
from opensora.ops.cpu.build import check_settings
from opensora.ops.cpu.runtime import tune_process
from opensora.parallel.launch import join_processes
from opensora.process.signals import handle_signals
from opensora.utils.logs import logger

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
        UserError: the target is not available, --use_parallel without msrun, this CPU lacks the instruction set of
            `OPENSORA_MARCH`, or the ranks have different kernels (`check_ranks_agree`).
    """
    target = args.device or default_target()
    if not ms.hal.is_available(target):
        raise UserError(f"--device {target}: not available on this machine; use --device {default_target()}")
    if target == "CPU":
        check_settings()
    _choose_target(target)
    if target == "CPU":
        tune_process()
    ms.set_context(mode=args.mode)
    if args.jit_level:
        ms.set_context(jit_config={"jit_level": args.jit_level})
    if args.max_device_memory:
        ms.runtime.set_memory(max_size=args.max_device_memory)
    rank, world_size = join_processes() if args.use_parallel else (0, 1)
    if rank == 0:
        warn_if_untested(ms.__version__)
    handle_signals()  # MindSpore installs handlers that end the process at once
    precision = choose_precision(target, args.precision, quiet=rank > 0)
    set_seed(args.seed)
    return Device(target, args.mode, precision, rank, world_size)


def _choose_target(target: str) -> None:
    """Calls `ms.set_device`, and accepts the target in use.

    After the first operator has run, as in a notebook, MindSpore raises an error even for the target in use.
    """
    in_use = ms.get_context("device_target")
    try:
        ms.set_device(target)
    except RuntimeError as error:
        if target != in_use:
            raise UserError(f"--device {target}: this process already computes on {in_use}; start another") from error


def default_target() -> str:
    """Ascend if this machine has an NPU, else CPU. Without an NPU, asking MindSpore would print warnings."""
    has_npu = any(Path("/dev").glob("davinci[0-9]*"))
    return "Ascend" if has_npu and ms.hal.is_available("Ascend") else "CPU"


def choose_precision(target: str, wanted: Optional[str], quiet: bool = False) -> str:
    """The precision to run in. An unsupported one is replaced by fp32, with a warning."""
    supported = SUPPORTED_PRECISIONS[target]
    if wanted is None:
        return supported[0]
    if wanted in supported:
        return wanted
    if not quiet:
        logger.warning(f"a {target} does not run {wanted} here; running fp32 instead")
    return "fp32"


def set_seed(seed: int) -> None:
    """Seeds MindSpore, numpy and Python."""
    ms.set_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
