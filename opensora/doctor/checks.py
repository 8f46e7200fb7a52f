"""The checks of `opensora doctor` and their results. Imports nothing heavy.

A check is a function that returns its rows: a dictionary from the name of a row to a function that returns its
`Result`. `opensora.doctor.child` runs the function in a process of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Callable, NamedTuple, Optional

LAST_ROW = "all ranks"  # of the collectives: whether a check has failed on any rank
OK, WARNING, FAILED, SKIPPED = STATUSES = ("ok", "warning", "failed", "skipped")


@dataclass(frozen=True)
class Settings:
    """What every check gets.

    Attributes:
        device: the target to check; None: the default of this machine.
        failed: whether an earlier check has failed.
    """

    device: Optional[str] = None
    failed: bool = False


@dataclass(frozen=True)
class Result:
    """The outcome of a row.

    Attributes:
        detail: one line.
        remedy: one line, what the user can do; empty without a problem.
        numbers: values for the JSON report.
    """

    status: str
    detail: str = ""
    remedy: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)


Rows = Mapping[str, Callable[[], Result]]


@dataclass(frozen=True)
class Row(Result):
    """A result with its place, its time, and the last output of a process that ended early."""

    check: str = ""
    name: str = ""
    seconds: float = 0.0
    output: str = ""


class Check(NamedTuple):
    """A function that returns `Rows`, as "module:function"; it takes `Settings`.

    Attributes:
        resumes: after a row that crashed or hung, a new process runs the rows that are left.
        joins: the process joins the process group of msrun, on every rank.
    """

    name: str
    help: str
    target: str
    resumes: bool = True
    joins: bool = False


CHECKS = (
    Check(
        "versions",
        "Python, MindSpore, numpy, CANN, driver, firmware, and which go together",
        "opensora.doctor.versions:rows",
    ),
    Check(
        "variables",
        "environment variables of devices, HCCL, the memory pool and this project",
        "opensora.doctor.variables:rows",
    ),
    Check("system", "memory, disk, ports, limits of processes", "opensora.doctor.system:rows"),
    Check("media", "ffmpeg, PyAV and decord: a video is written and read", "opensora.doctor.media:rows"),
    Check("devices", "chip, device memory, visible devices, C++ kernels of the CPU", "opensora.doctor.devices:rows"),
    Check(
        "primitives-fp32",
        "every primitive of opensora.ops, forward and backward",
        "opensora.doctor.primitives:rows_fp32",
    ),
    Check("primitives-fp16", "the same in float16", "opensora.doctor.primitives:rows_fp16"),
    Check("primitives-bf16", "the same in bfloat16", "opensora.doctor.primitives:rows_bf16"),
    Check(
        "sample",
        "two sampling steps of a tiny random model, against stored numbers",
        "opensora.doctor.end_to_end:sample_rows",
    ),
    Check(
        "training",
        "three training steps of a tiny model, against stored numbers",
        "opensora.doctor.end_to_end:training_rows",
    ),
    Check(
        "collectives",
        "under msrun: values and bandwidth",
        "opensora.doctor.collectives:rows",
        resumes=False,
        joins=True,
    ),
)
