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
from opensora.ops.backend import FIRST_GENERATION, ascend_chip, convolution_dtype
from opensora.ops.cpu.build import check_settings
from opensora.ops.cpu.runtime import tune_process
from opensora.parallel.launch import join_processes
from opensora.process.signals import handle_signals

PRECISIONS = {"bf16": ms.bfloat16, "fp16": ms.float16, "fp32": ms.float32}


@dataclass(frozen=True)
class Device:
    """Where this process runs. `dtype` is what models run in; `rank` counts processes from 0.

    `vae_precision` None follows `precision`. `all_to_all` is one of `opensora.config.device.ALL_TO_ALL`. `compiles`:
    the mode was not chosen, so that small models may be compiled in PyNative mode (`opensora.pipelines.compiled`).
    """

    target: str
    mode: int
    precision: str
    rank: int = 0
    world_size: int = 1
    vae_precision: Optional[str] = None
    all_to_all: str = "native"
    compiles: bool = False

    @property
    def dtype(self):
        return PRECISIONS[self.precision]

    @property
    def precisions(self) -> dict[str, str]:
        """The precision of the autoencoder and of the other models."""
        names = {dtype: name for name, dtype in PRECISIONS.items()}
        return {"precision": self.precision, "vae_precision": names[self.vae_dtype]}

    @property
    def vae_dtype(self):
        return PRECISIONS[self.vae_precision] if self.vae_precision else convolution_dtype(self.dtype)

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `DeviceOptions`."""
    add_flags(parser, DeviceOptions)


def setup(args: argparse.Namespace) -> Device:
    """Applies the flags of `add_arguments` to MindSpore. Called once, before any tensor is made.

    Raises:
        UserError: the target is not available or does not compute in the precision, --use_parallel without msrun, this
            CPU lacks the instruction set of `OPENSORA_MARCH`, or the ranks have different kernels
            (`check_ranks_agree`).
    """
    target = args.device or default_target()
    if not ms.hal.is_available(target):
        raise UserError(f"--device {target}: not available on this machine; use --device {default_target()}")
    if target == "CPU":
        check_settings()
    _choose_target(target)
    precision = choose_precision(target, args.precision)
    mode = ms.PYNATIVE_MODE if args.mode is None else args.mode
    check_mode(target, mode, precision)
    vae_precision = args.vae_precision and choose_precision(target, args.vae_precision, "--vae_precision")
    if target == "CPU":
        tune_process()
    if target == "Ascend":
        keep_precision()
    ms.set_context(mode=mode)
    if args.jit_level:
        ms.set_context(jit_config={"jit_level": args.jit_level})
    if args.max_device_memory:
        ms.runtime.set_memory(max_size=args.max_device_memory)
    rank, world_size = join_processes() if args.use_parallel else (0, 1)
    if rank == 0:
        warn_if_untested(ms.__version__)
    handle_signals()  # MindSpore installs handlers that end the process at once
    set_seed(args.seed)
    return Device(target, mode, precision, rank, world_size, vae_precision, args.all_to_all, args.mode is None)


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


def supported_precisions(target: str) -> tuple[str, ...]:
    """The precisions of a target, the default first."""
    if target == "CPU":
        return "fp32", "fp16", "bf16"
    if target == "GPU" or ascend_chip() == FIRST_GENERATION:
        return "fp16", "fp32"
    return "bf16", "fp16", "fp32"


def choose_precision(target: str, wanted: Optional[str], flag: str = "--precision") -> str:
    """The precision to run in; `wanted` or the default of the target.

    Raises:
        UserError: the target does not support it.
    """
    supported = supported_precisions(target)
    if wanted is not None and wanted not in supported:
        name = f"{target} ({ascend_chip()})" if target == "Ascend" else target
        raise UserError(f"{flag} {wanted}: {name} does not support it; choose one of {', '.join(supported)}")
    return wanted or supported[0]


def check_mode(target: str, mode: int, precision: str) -> None:
    """Raises UserError for bfloat16 in graph mode on a CPU, where MindSpore cannot even reshape it."""
    if target == "CPU" and mode == ms.GRAPH_MODE and precision == "bf16":
        raise UserError("--precision bf16: a CPU computes it in PyNative mode only; add --mode 1, or choose fp16")


def keep_precision() -> None:
    """Has Ascend compute in the dtypes of the tensors, which are not its defaults.

    The first generation computes float32 in float16 ("force_fp16"), and all generations compute float32 convolutions in
    HF32, which has 10 bits of mantissa. Runs in 16 bits have float32 convolutions, too: those of --vae_fp32.
    """
    op_precision = ms.device_context.ascend.op_precision
    if ascend_chip() == FIRST_GENERATION:
        op_precision.precision_mode("must_keep_origin_dtype")
    op_precision.conv_allow_hf32(False)


def set_seed(seed: int) -> None:
    """Seeds MindSpore, numpy and Python."""
    ms.set_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
