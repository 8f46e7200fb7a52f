"""Versions of packages and of the Ascend software, from sample files."""

from __future__ import annotations

import logging
import platform
import re
from pathlib import Path

import pytest
from processes import ROOT

from opensora.config import versions
from opensora.config.versions import ASCEND_STACKS, NUMPY, PYTHON, TESTED_MINDSPORE, same_release, warn_if_untested
from opensora.doctor import ascend
from opensora.doctor.checks import FAILED, OK, SKIPPED, WARNING
from opensora.doctor.versions import (
    PACKAGES,
    ascend_result,
    mindspore_result,
    numpy_result,
    packages_result,
    python_result,
)

ARCH = f"{platform.machine()}-linux"
TOOLKIT = """package_name=Ascend-cann-toolkit
version={}
innerversion=V100R001C22B100
compatible_version=[V100R001C15],[V100R001C18]
arch=aarch64
"""
VERSION_CFG = """# version: 1.0
runtime_running_version=[7.6.0.1.220:8.0.0]
toolkit_running_version=[7.6.0.1.220:8.0.0]
"""
DRIVER = """Version={0}
ascendhal_version=7.35.23
Innerversion=V100R001C21SPC002B220
compatible_version_fw=[7.0.0,7.7.99]
package_version={0}
"""
FIRMWARE = """Version={}
firmware_version=1.0
package_version={}
"""


def install(root: Path, cann: str = "", driver: str = "", firmware: str = "", firmware_number: str = "7.7.0.1.231"):
    """Writes the files of an installation below `root`."""
    for path, text in (
        (f"ascend-toolkit/latest/{ARCH}/ascend_toolkit_install.info", cann and TOOLKIT.format(cann)),
        ("driver/version.info", driver and DRIVER.format(driver)),
        ("firmware/version.info", firmware and FIRMWARE.format(firmware_number, firmware)),
    ):
        if text:
            (root / path).parent.mkdir(parents=True)
            (root / path).write_text(text)


def test_versions_are_read_from_their_files(tmp_path):
    install(tmp_path, "8.2.RC1", "25.2.0", "25.2.0")
    assert ascend.cann_version({}, tmp_path).number == "8.2.RC1"
    assert ascend.driver_version(tmp_path).number == ascend.firmware_version(tmp_path).number == "25.2.0"
    assert ascend.firmware_fits(tmp_path) is True


def test_exported_folder_comes_first(tmp_path):
    install(tmp_path, "8.2.RC1")
    other = tmp_path / "cann-8.5.0"
    (other / ARCH).mkdir(parents=True)
    (other / ARCH / "ascend_toolkit_install.info").write_text(TOOLKIT.format("8.5.0"))
    for variable in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME"):
        assert ascend.cann_version({variable: str(other)}, tmp_path).number == "8.5.0"
    (tmp_path / "cann").symlink_to(other)  # the default folder of CANN 8.5
    assert ascend.cann_version({}, tmp_path).number == "8.5.0"


def test_older_toolkits_have_a_version_cfg(tmp_path):
    (tmp_path / "version.cfg").write_text(VERSION_CFG)
    assert ascend.cann_version({"ASCEND_HOME_PATH": str(tmp_path)}, tmp_path).number == "8.0.0"


@pytest.mark.parametrize("text", ["", "Version", "\x00\xff=\n=x", "version=\n"])
def test_damaged_files_have_no_version(text, tmp_path):
    install(tmp_path, driver="x")
    (tmp_path / "driver/version.info").write_text(text)
    (tmp_path / "version.cfg").write_text(text)
    assert ascend.driver_version(tmp_path) is None and ascend.firmware_fits(tmp_path) is None
    assert ascend.cann_version({"ASCEND_HOME_PATH": str(tmp_path)}, tmp_path) is None


@pytest.mark.parametrize("stack", ASCEND_STACKS)
def test_documented_stacks_are_accepted(stack, tmp_path):
    install(tmp_path, stack.cann, stack.driver.lower(), stack.driver.lower())
    result = ascend_result(stack.mindspore, {}, tmp_path)
    assert (result.status, result.remedy) == (OK, "") and stack.cann in result.detail


@pytest.mark.parametrize(
    "mindspore, files, status, words",
    [
        ("2.7.0", {}, SKIPPED, "no CANN and no NPU driver"),
        ("2.7.0", dict(cann="8.0.RC2.beta1", driver="24.1.rc2", firmware="24.1.RC2"), WARNING, "other CANN and driver"),
        ("2.7.0", dict(cann="8.2.RC1", driver="25.0.rc1.1", firmware="25.0.rc1.1"), WARNING, "other driver and firmw"),
        ("2.7.0", dict(cann="8.2.RC1"), OK, "driver not found"),
        ("2.7.0", dict(driver="25.2.0"), WARNING, "CANN not found"),
        ("2.99.0", dict(cann="8.2.RC1"), WARNING, "no documented pair is known for MindSpore 2.99.0"),
        (None, dict(cann="8.2.RC1"), WARNING, "no documented pair"),
        (
            "2.7.0",
            dict(cann="8.2.RC1", driver="25.2.0", firmware="25.2.0", firmware_number="7.8.0.1"),
            FAILED,
            "the driver does not support this firmware",
        ),
    ],
)
def test_pairs_of_versions(mindspore, files, status, words, tmp_path):
    install(tmp_path, **files)
    result = ascend_result(mindspore, {}, tmp_path)
    assert result.status == status and words in result.detail
    assert bool(result.remedy) == (status in (WARNING, FAILED) and "documented pair" not in words)


def test_remedy_names_the_documented_pair(tmp_path):
    install(tmp_path, "8.5.0", "25.5.0", "25.5.0")
    remedy = ascend_result("2.7.0.post1", {}, tmp_path).remedy
    assert remedy == "MindSpore 2.7.0 is documented with CANN 8.2.RC1, driver and firmware 25.2.0"


def test_release_names():
    assert same_release("25.0.rc1.1", "25.0.RC1") and same_release("8.0.RC2.beta1", "8.0.RC2")
    assert not same_release("8.0.RC20", "8.0.RC2") and not same_release("8.0.0", "8.0.RC2")


def test_versions_of_python_and_packages():
    assert [python_result(version).status for version in ((3, 8, 1), (3, 9, 0), (3, 11, 9), (3, 12, 0))] == [
        FAILED,
        OK,
        OK,
        FAILED,
    ]
    found = ["1.19.5", "1.20.0", "1.26.4", "2.0.0", None]
    assert [numpy_result(version).status for version in found] == [FAILED, OK, OK, FAILED, FAILED]
    assert mindspore_result("2.7.0").status == OK and mindspore_result(None).status == FAILED
    other = mindspore_result("2.6.0")
    assert other.status == WARNING and "2.6.0 is not one of the tested 2.7.0, 2.7.1" in other.detail
    assert "pip install mindspore==2.7.0" in other.remedy
    missing = packages_result({"av": "15.1", "ftfy": None})
    assert missing.status == FAILED and missing.detail == "not installed: ftfy"


def test_lists_agree_with_the_requirements():
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    names = [re.match(r"([\w-]+)(?:\[(\w+)\])?", line).groups() for line in lines]
    packages = [name for base, extra in names for name in [base, *([f"{base}-{extra}"] if extra else [])]]
    assert packages == ["mindspore", "numpy", *PACKAGES]
    assert f"mindspore=={next(iter(TESTED_MINDSPORE))}" in lines and f"numpy<{NUMPY[1]}" in lines
    requires = f'requires-python = ">={PYTHON[0][0]}.{PYTHON[0][1]},<{PYTHON[1][0]}.{PYTHON[1][1] + 1}"'
    assert requires in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("mindspore, warned", [("2.7.0", False), ("2.7.1.post1", False), ("2.8.0", True)])
def test_untested_mindspore_is_a_warning_once(mindspore, warned, capsys, monkeypatch):
    warn_if_untested.cache_clear()
    for _ in range(2):
        warn_if_untested(mindspore)
    shown = capsys.readouterr().err
    assert shown.count("\n") == int(warned)
    assert not warned or f"warning: MindSpore {mindspore} is not one of the tested 2.7.0, 2.7.1, 2.7.2" in shown
    warn_if_untested.cache_clear()
    assert versions.logger is logging.getLogger("opensora")


def test_commands_warn_of_an_untested_mindspore(run):
    program = """
import argparse, dataclasses, mindspore
from opensora import device
from opensora.config.device import DeviceOptions
from opensora.utils import logs
logs.configure()
mindspore.__version__ = "2.99.0"
device.setup(argparse.Namespace(**dataclasses.asdict(DeviceOptions(device="CPU"))))
"""
    assert run("-c", program).stderr.count("MindSpore 2.99.0 is not one of the tested 2.7.0") == 1
