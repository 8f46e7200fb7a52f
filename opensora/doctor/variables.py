"""Environment variables that change how devices, HCCL, the memory pool and this project work.

Ranges are those of Huawei's reference of environment variables (CANN 8.2 to 8.5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

from opensora.doctor import ascend
from opensora.doctor.checks import FAILED, OK, WARNING, Result, Rows, Settings
from opensora.process.supervision import MARK
from opensora.utils.logs import LEVEL

SHOWN = (
    "ASCEND_HOME_PATH",
    "ASCEND_TOOLKIT_HOME",
    "ASCEND_RT_VISIBLE_DEVICES",
    "ASCEND_VISIBLE_DEVICES",
    "ASCEND_LAUNCH_BLOCKING",
    "ASCEND_GLOBAL_LOG_LEVEL",
    "DEVICE_ID",
    "RANK_TABLE_FILE",
    "HCCL_CONNECT_TIMEOUT",
    "HCCL_EXEC_TIMEOUT",
    "HCCL_BUFFSIZE",
    "HCCL_IF_BASE_PORT",
    "HCCL_IF_IP",
    "HCCL_SOCKET_IFNAME",
    "HCCL_WHITELIST_DISABLE",
    "HCCL_WHITELIST_FILE",
    "HCCL_DETERMINISTIC",
    "MS_ALLOC_CONF",
    "MS_COMPILER_CACHE_ENABLE",
    "MS_COMPILER_CACHE_PATH",
    "GLOG_v",
    "OMP_NUM_THREADS",
)
SHOWN_PREFIXES = ("OPENSORA_", "MS_ENABLE_")
GROUPS = {
    "devices": ("ASCEND_", "DEVICE_ID"),
    "hccl": ("HCCL_", "RANK_TABLE_FILE"),
    "mindspore": ("MS_", "GLOG_", "OMP_"),
    "opensora": ("OPENSORA_",),
}
RANGES = {"HCCL_CONNECT_TIMEOUT": (120, 7200), "HCCL_IF_BASE_PORT": (1024, 65520)}


def rows(settings: Settings) -> Rows:
    found = shown_variables(os.environ)
    numbers = ascend.device_numbers()
    return {name: _row(prefixes, found, numbers) for name, prefixes in GROUPS.items()}


def _row(prefixes: Sequence[str], found: Mapping[str, str], devices: Sequence[int]):
    mine = {name: value for name, value in found.items() if name.startswith(tuple(prefixes))}
    return lambda: result(mine, devices)


def shown_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a report may contain."""
    return {
        name: value
        for name, value in sorted(environment.items())
        if (name in SHOWN or name.startswith(SHOWN_PREFIXES)) and name not in (LEVEL, MARK)  # which commands set
    }


def result(variables: Mapping[str, str], devices: Sequence[int]) -> Result:
    """The values of a group of variables, with the first problem as the remedy. `devices`: the NPUs in /dev."""
    shown = " ".join(f"{name}={value}" for name, value in variables.items()) or "none set"
    problems = [
        (name, *problem) for name in variables for problem in [find_problem(name, variables, devices)] if problem
    ]
    if not problems:
        return Result(OK, shown, numbers=variables)
    worst = FAILED if any(status == FAILED for _, status, _ in problems) else WARNING
    return Result(worst, shown, "; ".join(f"{name}: {text}" for name, _, text in problems), variables)


def find_problem(name: str, variables: Mapping[str, str], devices: Sequence[int] = ()) -> Optional[tuple[str, str]]:
    """(status, what is wrong and what to do) for a variable that is known to do harm, or None."""
    value = variables[name]
    if name in RANGES:
        first, last = RANGES[name]
        if not re.fullmatch(r"\d+", value.strip()) or not first <= int(value) <= last:
            return WARNING, f"should be a whole number from {first} to {last}"
    if name in ("ASCEND_RT_VISIBLE_DEVICES", "DEVICE_ID"):
        return _device_problem(name, value, devices)
    if name == "RANK_TABLE_FILE" and value and not Path(value).is_file():
        return WARNING, "no such file; msrun needs no rank table, unset it"
    if name == "HCCL_WHITELIST_DISABLE" and value == "0" and "HCCL_WHITELIST_FILE" not in variables:
        return WARNING, "0 checks addresses against HCCL_WHITELIST_FILE, which is not set; set it to 1"
    if name == "MS_ALLOC_CONF" and not all(re.fullmatch(r"\w+:[^:,]+", item.strip()) for item in value.split(",")):
        return WARNING, "should be name:value pairs, separated by commas"
    if name == "ASCEND_LAUNCH_BLOCKING" and value == "1":
        return WARNING, "1 waits for every operator, which is for debugging only; unset it"
    if name == "ASCEND_GLOBAL_LOG_LEVEL" and value in ("0", "1"):
        return WARNING, "logs of debug or info level slow every operator down; set it to 3"
    if name == "GLOG_v" and value in ("0", "1"):
        return WARNING, "logs of debug or info level slow MindSpore down; set it to 2"
    if name == "OPENSORA_CPU_KERNELS" and value == "0":
        return WARNING, "0 replaces the C++ kernels of the CPU by slower stock operators; unset it"
    if name == "OPENSORA_ASCEND_COMPOSED":
        from opensora.ops.backend import FUSED_OPERATORS  # imports MindSpore

        unknown = [item.strip() for item in value.split(",") if item.strip() and item.strip() not in FUSED_OPERATORS]
        if unknown:
            return FAILED, f"{unknown[0]} is not one of {', '.join(FUSED_OPERATORS)}"
    return None


def _device_problem(name: str, value: str, devices: Sequence[int]) -> Optional[tuple[str, str]]:
    items = [item.strip() for item in value.split(",")]
    if not all(re.fullmatch(r"\d+", item) for item in items) or len(set(items)) < len(items):
        return FAILED, "should be numbers of devices, each once, separated by commas"
    if name == "ASCEND_RT_VISIBLE_DEVICES" and devices:
        missing = [item for item in items if int(item) not in devices]
        if missing:
            return FAILED, f"/dev has no davinci{missing[0]}; its devices are {', '.join(map(str, devices))}"
    return None
