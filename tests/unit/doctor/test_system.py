"""Facts of the system: variables, devices, memory, disk, ports, limits."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

import pytest

from opensora.doctor.ascend import device_numbers, npu_smi_table, parse_npu_smi
from opensora.doctor.checks import FAILED, OK, SKIPPED, WARNING
from opensora.doctor.devices import npu_result
from opensora.doctor.media import backend_result
from opensora.doctor.system import disk_result, hccl_ports_reserved, is_free, limits_result, memory_result, ports_result
from opensora.doctor.variables import result, shown_variables
from opensora.utils.memory import cgroup_limit

TABLE = """
+------------------------------------------------------------------------------------------------+
| npu-smi 25.2.0                   Version: 25.2.0                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip                      | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     910B2               | OK            | 93.3        40                0    / 0             |
| 0                         | 0000:C1:00.0  | 0           0    / 0          3163 / 65536         |
+===========================+===============+====================================================+
| 1     910B2               | {health:13} | 92.0        41                0    / 0             |
| 0                         | 0000:01:00.0  | 0           0    / 0          {used:5}/ 65536         |
+===========================+===============+====================================================+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 0       0                 | 1084428       | python                   | 56373                   |
+===========================+===============+====================================================+
"""


def table(health: str = "OK", used: int = 3000) -> str:
    return TABLE.format(health=health, used=used)


def test_table_of_npu_smi():
    first, second = parse_npu_smi(table("Alarm", 61000))
    assert first == (0, "910B2", "OK", 3163, 65536) and second == (1, "910B2", "Alarm", 61000, 65536)
    assert parse_npu_smi("") == parse_npu_smi("dcmi model initialized failed") == []


def test_npu_smi_that_is_missing_or_fails(tmp_path):
    assert npu_smi_table(str(tmp_path / "npu-smi")) is None
    program = tmp_path / "npu-smi"
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(subprocess.CalledProcessError):
        npu_smi_table(str(program))
    result = npu_result([0], lambda: npu_smi_table(str(program)))
    assert result.status == FAILED and "check the driver" in result.remedy


@pytest.mark.parametrize(
    "numbers, shown, status, words",
    [
        ([], None, SKIPPED, "no NPU"),
        ([0, 1], table(), OK, "2 in /dev (0, 1); 0: 910B2 3163/65536 MB"),
        ([], table(), FAILED, "npu-smi lists 2 NPUs, but /dev has no davinci*"),
        ([0, 1], None, WARNING, "npu-smi is not on the PATH"),
        ([0, 1], table("Critical"), FAILED, "NPU 1 is in state Critical"),
        ([0, 1], table(used=61000), WARNING, "memory of NPU 1 is in use"),
    ],
)
def test_npus(numbers, shown, status, words):
    result = npu_result(numbers, lambda: shown)
    assert result.status == status and words in result.detail
    assert bool(result.remedy) == (status in (FAILED, WARNING))


def test_devices_of_dev(tmp_path):
    for name in ("davinci10", "davinci2", "davinci_manager", "devmm_svm"):
        (tmp_path / name).touch()
    assert device_numbers(tmp_path) == [2, 10]


def test_report_contains_listed_variables_only():
    environment = {"HCCL_BUFFSIZE": "400", "OPENSORA_MARCH": "native", "MS_ENABLE_LCCL": "on", "SECRET_TOKEN": "x"}
    assert shown_variables({**environment, "HOME": "/home/u", "OPENSORA_LOG_LEVEL": "info"}) == {
        "HCCL_BUFFSIZE": "400",
        "MS_ENABLE_LCCL": "on",
        "OPENSORA_MARCH": "native",
    }


@pytest.mark.parametrize(
    "name, value, status",
    [
        ("HCCL_CONNECT_TIMEOUT", "1200", OK),
        ("HCCL_CONNECT_TIMEOUT", "60", WARNING),
        ("HCCL_CONNECT_TIMEOUT", "2 min", WARNING),
        ("HCCL_IF_BASE_PORT", "65530", WARNING),
        ("HCCL_WHITELIST_DISABLE", "1", OK),
        ("HCCL_WHITELIST_DISABLE", "0", WARNING),
        ("ASCEND_RT_VISIBLE_DEVICES", "0,1", OK),
        ("ASCEND_RT_VISIBLE_DEVICES", "0,7", FAILED),
        ("ASCEND_RT_VISIBLE_DEVICES", "0,0", FAILED),
        ("ASCEND_RT_VISIBLE_DEVICES", "", FAILED),
        ("DEVICE_ID", "one", FAILED),
        ("RANK_TABLE_FILE", "/none/ranks.json", WARNING),
        ("MS_ALLOC_CONF", "enable_vmm:True,vmm_align_size:2MB", OK),
        ("MS_ALLOC_CONF", "enable_vmm", WARNING),
        ("ASCEND_GLOBAL_LOG_LEVEL", "0", WARNING),
        ("GLOG_v", "1", WARNING),
        ("ASCEND_LAUNCH_BLOCKING", "1", WARNING),
        ("OPENSORA_CPU_KERNELS", "0", WARNING),
        ("OPENSORA_ASCEND_COMPOSED", "rope, rms_norm", OK),
        ("OPENSORA_ASCEND_COMPOSED", "softmax", FAILED),
    ],
)
def test_harmful_variables(name, value, status):
    found = result({name: value}, devices=[0, 1, 2])
    assert found.status == status and f"{name}={value}" in found.detail
    assert bool(found.remedy) == (status != OK) and (status == OK or found.remedy.startswith(f"{name}: "))


def test_no_variable_is_set():
    assert result({}, devices=[]).detail == "none set"


def test_memory(tmp_path):
    meminfo = "MemTotal:       16777216 kB\nMemAvailable:   {} kB\nHugePages_Total:       0\n"
    roomy, scarce = (memory_result(meminfo.format(kb), limit=0) for kb in (8 << 20, 1 << 20))
    assert (roomy.status, scarce.status) == (OK, WARNING) and "16.0 GB, 8.0 GB available" in roomy.detail
    assert "limited to 4.0 GB" in memory_result(meminfo.format(8 << 20), limit=4 << 30).detail
    (tmp_path / "memory.max").write_text("max\n")
    assert cgroup_limit(tmp_path / "memory.max") == cgroup_limit(tmp_path / "none") == 0
    (tmp_path / "memory.max").write_text("4294967296\n")
    assert cgroup_limit(tmp_path / "memory.max") == 4 << 30


@pytest.mark.parametrize("free, status", [(100, OK), (5, WARNING), (0, FAILED)])
def test_disk(free, status, monkeypatch, tmp_path):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": free << 30}))
    assert disk_result({"current folder": tmp_path / "not/yet/there"}).status == status


def test_taken_port_is_named():
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        port = server.getsockname()[1]
        assert not is_free(port)
        found = ports_result("", [port])
        assert found.status == WARNING and str(port) in found.detail and found.numbers["taken"] == [port]
        assert ports_result(str(port), [port]).status == OK  # of the msrun that runs the command
    assert is_free(port)


@pytest.mark.parametrize(
    "ephemeral, reserved, safe",
    [
        ("32768 60999", "", False),
        ("32768 60999", "60000-60031", True),
        ("32768 50000", "", True),
        ("32768 60999", "1,60000-60015", False),
    ],
)
def test_ports_of_hccl(ephemeral, reserved, safe, tmp_path):
    (tmp_path / "ip_local_port_range").write_text(f"{ephemeral}\n")
    (tmp_path / "ip_local_reserved_ports").write_text(f"{reserved}\n")
    assert hccl_ports_reserved(tmp_path) is safe
    assert hccl_ports_reserved(Path(tmp_path / "none"))


def test_limits():
    assert limits_result(1024).status == WARNING and "ulimit -n" in limits_result(1024).remedy
    assert limits_result(65536).status == limits_result(-1).status == OK


def test_video_that_reads_back_differently_is_found(monkeypatch):
    assert backend_result("pyav").status == OK
    monkeypatch.setattr("opensora.datasets.media.VideoReader.read", lambda self, indices: [[[[0]]]] * len(indices))
    assert backend_result("pyav").status == FAILED
