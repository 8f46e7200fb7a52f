"""Versions of Python, its packages and the Ascend software, and which of them are known to go together."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Optional

from opensora.config.versions import (
    NUMPY,
    PYTHON,
    TESTED_MINDSPORE,
    base_version,
    documented_stack,
    numbers_of,
    same_release,
    tested_versions,
)
from opensora.doctor import ascend
from opensora.doctor.checks import FAILED, OK, SKIPPED, WARNING, Result, Rows, Settings

# The packages of requirements.txt besides MindSpore and numpy, by the names of their distributions.
PACKAGES = (
    "safetensors",
    "av",
    "opencv-python-headless",
    "imageio",
    "imageio-ffmpeg",
    "pillow",
    "pyyaml",
    "mmengine-lite",
    "tqdm",
    "tensorboardX",
    "ftfy",
    "beautifulsoup4",
    "transformers",
    "sentencepiece",
    "protobuf",
)
INSTALL = "pip install -r requirements.txt, or pip install opensora-mindspore"


def rows(settings: Settings) -> Rows:
    return {
        "python": lambda: python_result(sys.version_info[:3]),
        "mindspore": lambda: mindspore_result(installed("mindspore")),
        "numpy": lambda: numpy_result(installed("numpy")),
        "packages": lambda: packages_result({name: installed(name) for name in PACKAGES}),
        "ascend": lambda: ascend_result(installed("mindspore"), os.environ),
    }


def installed(name: str) -> Optional[str]:
    """The installed version of a distribution, without importing it."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def python_result(found: tuple[int, ...]) -> Result:
    first, last = (".".join(map(str, bound)) for bound in PYTHON)
    number, supported = ".".join(map(str, found)), f"supported: {first} to {last}"
    if PYTHON[0] <= found[:2] <= PYTHON[1]:
        return Result(OK, f"{number}, {supported}", numbers={"version": number})
    remedy = f"create an environment with Python {last}: MindSpore 2.7 has wheels for {first} to {last} only"
    return Result(FAILED, f"{number}, {supported}", remedy, {"version": number})


def mindspore_result(found: Optional[str]) -> Result:
    if found is None:
        return Result(FAILED, "not installed", f"install it with {INSTALL}")
    known = TESTED_MINDSPORE.get(base_version(found))
    if known is None:
        remedy = f"see whether the other checks pass, or pip install mindspore=={next(iter(TESTED_MINDSPORE))}"
        return Result(WARNING, f"{found} is not one of the tested {tested_versions()}", remedy, {"version": found})
    return Result(OK, f"{found}, with which {known} pass on a CPU", numbers={"version": found})


def numpy_result(found: Optional[str]) -> Result:
    if found is None:
        return Result(FAILED, "not installed", f"install it with {INSTALL}")
    if numbers_of(NUMPY[0]) <= numbers_of(found) < numbers_of(NUMPY[1]):
        return Result(OK, f"{found}, supported: {NUMPY[0]} to below {NUMPY[1]}", numbers={"version": found})
    remedy = f'pip install "numpy>={NUMPY[0]},<{NUMPY[1]}"'
    return Result(FAILED, f"{found}, MindSpore 2.7 needs {NUMPY[0]} to below {NUMPY[1]}", remedy, {"version": found})


def packages_result(found: Mapping[str, Optional[str]]) -> Result:
    missing = [name for name, number in found.items() if number is None]
    if missing:
        return Result(FAILED, f"not installed: {', '.join(missing)}", f"install them with {INSTALL}", dict(found))
    return Result(OK, f"{len(found)} packages of requirements.txt are installed", numbers=dict(found))


def ascend_result(mindspore: Optional[str], environment: Mapping[str, str], root: Path = ascend.ROOT) -> Result:
    """Whether CANN, driver and firmware are the ones that are documented for this MindSpore."""
    cann, driver = ascend.cann_version(environment, root), ascend.driver_version(root)
    firmware = ascend.firmware_version(root)
    named = {"CANN": cann, "driver": driver, "firmware": firmware}
    numbers = {name: found and found.number for name, found in named.items()}
    if not any(named.values()):
        return Result(SKIPPED, f"no CANN and no NPU driver in {root} or ASCEND_HOME_PATH", numbers=numbers)
    detail = ", ".join(f"{name} {number or 'not found'}" for name, number in numbers.items())
    if ascend.firmware_fits(root) is False:
        remedy = "install the firmware of the driver's package; its version.info names compatible_version_fw"
        return Result(FAILED, f"{detail}: the driver does not support this firmware", remedy, numbers)
    if cann is None:
        remedy = "install the CANN toolkit, or source its set_env.sh, which exports ASCEND_HOME_PATH"
        return Result(WARNING, detail, remedy, numbers)
    stack = documented_stack(mindspore or "")
    if stack is None:
        return Result(WARNING, f"{detail}: no documented pair is known for MindSpore {mindspore}", numbers=numbers)
    documented = f"MindSpore {stack.mindspore} is documented with CANN {stack.cann}, driver and firmware {stack.driver}"
    numbers["documented"] = f"{stack.cann}, {stack.driver}"
    differs = [
        name
        for name, release in (("CANN", stack.cann), ("driver", stack.driver), ("firmware", stack.driver))
        if numbers[name] and not same_release(str(numbers[name]), release)
    ]
    if differs:
        return Result(WARNING, f"{detail}: other {' and '.join(differs)} than documented", documented, numbers)
    return Result(OK, f"{detail}, as documented for MindSpore {stack.mindspore}", numbers=numbers)
