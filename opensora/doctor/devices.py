"""Chip, memory and visibility of the devices, and the C++ kernels of the CPU.

The rows about NPUs follow the documentation and were not run on one.
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from typing import Optional

from opensora.doctor import ascend
from opensora.doctor.checks import FAILED, OK, SKIPPED, WARNING, Result, Rows, Settings

BUSY = 0.5  # used fraction of an NPU's memory from which on it is reported


def rows(settings: Settings) -> Rows:
    return {
        "npus": lambda: npu_result(ascend.device_numbers(), ascend.npu_smi_table),
        "target": lambda: target_result(settings.device),
        "kernels": lambda: kernels_result(settings.device),
    }


def npu_result(numbers: Sequence[int], read_table=ascend.npu_smi_table) -> Result:
    """The NPUs in /dev and in the table of npu-smi. `read_table` returns the table, or None without the program."""
    try:
        table = read_table()
    except subprocess.SubprocessError as error:
        return Result(FAILED, f"npu-smi info: {error}", "check the driver: dmesg, and the log of its installation")
    npus = ascend.parse_npu_smi(table or "")
    values = {"devices": list(numbers), "npu-smi": [npu._asdict() for npu in npus]}
    if not numbers and not npus:
        return Result(SKIPPED, "no NPU: /dev/davinci* and npu-smi are missing", numbers=values)
    if not numbers:
        remedy = "pass the devices to the container: --device /dev/davinci0 ..., davinci_manager, devmm_svm, hisi_hdc"
        return Result(FAILED, f"npu-smi lists {len(npus)} NPUs, but /dev has no davinci*", remedy, values)
    shown = f"{len(numbers)} in /dev ({', '.join(map(str, numbers))})"
    if not npus:
        return Result(WARNING, f"{shown}; npu-smi is not on the PATH", "mount npu-smi of the driver", values)
    memory = ", ".join(f"{npu.number}: {npu.name} {npu.used}/{npu.total} MB" for npu in npus)
    ill = [npu for npu in npus if npu.health.upper() != "OK"]
    if ill:
        remedy = f"npu-smi info -t health -i {ill[0].number}"
        return Result(FAILED, f"{shown}; NPU {ill[0].number} is in state {ill[0].health}; {memory}", remedy, values)
    busy = [str(npu.number) for npu in npus if npu.total and npu.used > BUSY * npu.total]
    if busy:
        remedy = "end the other programs, which npu-smi info lists, or choose devices with ASCEND_RT_VISIBLE_DEVICES"
        return Result(WARNING, f"{shown}; memory of NPU {', '.join(busy)} is in use; {memory}", remedy, values)
    return Result(OK, f"{shown}; {memory}", numbers=values)


def target_result(target: Optional[str]) -> Result:
    """Computes a sum on the device that commands would use."""
    import mindspore as ms

    from opensora.doctor.place import set_up
    from opensora.ops.backend import CHIPS, FUSED_OPERATORS, ascend_chip, uses_fused

    device = set_up(target)
    total = float((ms.Tensor([1.0, 2.0]) + 1).sum().asnumpy())
    if total != 5:
        return Result(FAILED, f"{device.target}: 2 + 3 is {total:g}", "install MindSpore and CANN again")
    if device.target != "Ascend":
        return Result(OK, f"{device.target} {platform.machine()}", numbers={"target": device.target})
    chip = ascend_chip()
    fused = [name for name in FUSED_OPERATORS if uses_fused(name)]
    memory = getattr(ms.hal.get_device_properties(0), "total_memory", 0)
    numbers = {"target": "Ascend", "chip": chip, "memory": memory, "fused": fused}
    shown = f"Ascend, chip {chip}, {memory / (1 << 30):.0f} GB, fused operators: {', '.join(fused) or 'none'}"
    if chip not in CHIPS:
        return Result(WARNING, f"{shown}; known chips are {', '.join(CHIPS)}", numbers=numbers)
    return Result(OK, shown, numbers=numbers)


def kernels_result(target: Optional[str]) -> Result:
    """Compiles and loads the C++ kernels of the CPU."""
    from opensora.doctor.place import set_up
    from opensora.ops.cpu.build import SWITCH, library
    from opensora.ops.cpu.custom_op import has_sgemm

    if set_up(target).target != "CPU":
        return Result(SKIPPED, "used on a CPU only")
    found = library()
    if found is None:
        remedy = f"install g++, and unset {SWITCH}; without them everything works, but slower"
        return Result(WARNING, "not available: MindSpore's operators are used", remedy)
    numbers = {"key": found.key, "sgemm": has_sgemm()}
    if not has_sgemm():
        remedy = "MindSpore's libdnnl.so.2 is another version than that of MindSpore 2.7; convolutions are slower"
        return Result(WARNING, "without matrix products of oneDNN", remedy, numbers)
    return Result(OK, f"compiled, {found.key}", numbers=numbers)
