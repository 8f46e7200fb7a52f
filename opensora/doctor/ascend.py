"""The software and the devices of an Ascend server, from files, /dev and npu-smi.

Paths and formats follow Huawei's documentation and published outputs; nothing here was run on an NPU.
"""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Optional

from opensora.config.versions import numbers_of

ROOT = Path("/usr/local/Ascend")
NPU_SMI_SECONDS = 30.0


class Version(NamedTuple):
    """A version and the file that states it."""

    number: str
    file: Path


class Npu(NamedTuple):
    """A device in the table of `npu-smi info`; memory in MB."""

    number: int
    name: str
    health: str
    used: int
    total: int


def read_fields(path: Path) -> dict[str, str]:
    """The lines `name=value` of a file, names in lower case; empty for a file that cannot be read."""
    with suppress(OSError):
        pairs = (line.partition("=") for line in path.read_text(errors="replace").splitlines())
        return {name.strip().lower(): value.strip() for name, sign, value in pairs if sign}
    return {}


def cann_folders(environment: Mapping[str, str], root: Path = ROOT) -> list[Path]:
    """Where CANN may be: the folders that its set_env.sh exports, then the defaults of CANN 8.5 and of older ones."""
    exported = [environment.get(name, "") for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME")]
    return [*(Path(folder) for folder in exported if folder), root / "cann", root / "ascend-toolkit" / "latest"]


def cann_version(environment: Mapping[str, str], root: Path = ROOT) -> Optional[Version]:
    """The version of the CANN toolkit, from `ascend_toolkit_install.info` or `version.cfg`."""
    for folder in cann_folders(environment, root):
        for path in (folder / f"{platform.machine()}-linux", folder):
            number = read_fields(path / "ascend_toolkit_install.info").get("version")
            if number:
                return Version(number, path / "ascend_toolkit_install.info")
        # toolkit_running_version=[7.6.0.1.220:8.0.0]: the versions of the component and of CANN
        stated = re.fullmatch(
            r"\[[^:\]]*:([^:\]]+)\]", read_fields(folder / "version.cfg").get("toolkit_running_version", "")
        )
        if stated:
            return Version(stated[1], folder / "version.cfg")
    return None


def driver_version(root: Path = ROOT) -> Optional[Version]:
    """The version of the NPU driver's package."""
    return _package_version(root / "driver" / "version.info")


def firmware_version(root: Path = ROOT) -> Optional[Version]:
    """The version of the NPU firmware's package."""
    return _package_version(root / "firmware" / "version.info")


def _package_version(path: Path) -> Optional[Version]:
    fields = read_fields(path)
    number = fields.get("package_version") or fields.get("version")
    return Version(number, path) if number else None


def firmware_fits(root: Path = ROOT) -> Optional[bool]:
    """Whether the firmware is in the range that the driver's version.info names; None if the files do not say.

    compatible_version_fw=[7.0.0,7.7.99]: the first and the last version.
    """
    bounds = re.fullmatch(
        r"\[([\d.]+),([\d.]+)\]", read_fields(root / "driver/version.info").get("compatible_version_fw", "")
    )
    firmware = numbers_of(read_fields(root / "firmware/version.info").get("version", ""))
    if bounds is None or not firmware:
        return None
    return numbers_of(bounds[1]) <= firmware <= (*numbers_of(bounds[2]), float("inf"))


def device_numbers(dev: Path = Path("/dev")) -> list[int]:
    """The numbers of the NPUs, /dev/davinci0 and so on."""
    names = (re.fullmatch(r"davinci(\d+)", path.name) for path in dev.glob("davinci*"))
    return sorted(int(name[1]) for name in names if name)


def npu_smi_table(command: str = "npu-smi") -> Optional[str]:
    """The output of `npu-smi info`; None without the program.

    Raises:
        subprocess.SubprocessError: it failed or did not answer in time.
    """
    with suppress(FileNotFoundError):
        finished = subprocess.run(
            [command, "info"], capture_output=True, text=True, timeout=NPU_SMI_SECONDS, check=True
        )
        return finished.stdout
    return None


def parse_npu_smi(table: str) -> list[Npu]:
    """The devices of `npu-smi info`: two lines for each chip, of which the second ends with the memory used / total.

    The chips of a device with two have the device's number each.
    """
    found, chip = [], None
    for line in table.splitlines():
        first = re.match(r"\|\s*(\d+)\s+([A-Za-z0-9_-]*[A-Za-z][A-Za-z0-9_-]*)\s*\|\s*(\w+)\s*\|", line)
        memory = re.search(r"(\d+)\s*/\s*(\d+)\s*\|\s*$", line)
        if first:
            chip = first
        elif chip and memory:
            found.append(Npu(int(chip[1]), chip[2], chip[3], int(memory[1]), int(memory[2])))
            chip = None
    return found
