"""Choice of device, precision and processes, each in a new process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from processes import ROOT, msrun

from opensora import device
from opensora.device import Device, choose_precision
from opensora.errors import UserError
from opensora.ops import backend
from opensora.parallel.launch import raise_timeouts

SCRIPT = """
import argparse
from opensora.process.supervision import supervise
supervise()
from opensora import device
from opensora.config.command_line import run_main

def main():
    parser = argparse.ArgumentParser()
    device.add_arguments(parser)
    dev = device.setup(parser.parse_args())
    import mindspore as ms
    print(f"RESULT {dev.target} mode={ms.get_context('mode')} {dev.dtype} rank {dev.rank} of {dev.world_size}",
          ms.ops.standard_normal((2,)).asnumpy().tolist())

run_main(main)
"""


@pytest.fixture
def script(tmp_path) -> Path:
    path = tmp_path / "setup_device.py"
    path.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{SCRIPT}")
    return path


def test_default_device_and_seed(run, script):
    first, second, other = (run(script, "--device", "CPU", "--seed", seed) for seed in (5, 5, 6))
    assert "RESULT CPU mode=1 Float32 rank 0 of 1" in first.stdout
    assert first.stdout == second.stdout != other.stdout
    assert "warning:" not in first.stderr


def test_flags_are_applied(run, script):
    finished = run(
        script, "--device", "CPU", "--mode", 0, "--precision", "fp16", "--jit_level", "O0", "--max_device_memory", "4GB"
    )
    assert "RESULT CPU mode=0 Float16" in finished.stdout
    assert "RESULT CPU mode=1 BFloat16" in run(script, "--device", "CPU", "--precision", "bf16").stdout


def test_bf16_in_graph_mode_on_a_cpu_is_rejected(run, script):
    finished = run(script, "--device", "CPU", "--mode", 0, "--precision", "bf16")
    assert finished.returncode == 1 and "error: --precision bf16" in finished.stderr and "--mode 1" in finished.stderr


@pytest.mark.parametrize(
    "chip, default, supported, autoencoder",
    [
        ("ascend910", "fp16", ("fp16", "fp32"), "fp16"),
        ("ascend910b", "bf16", ("bf16", "fp16", "fp32"), "fp16"),
        ("ascend910_93", "bf16", ("bf16", "fp16", "fp32"), "fp16"),
    ],
)
def test_precision_depends_on_the_chip(chip, default, supported, autoencoder, monkeypatch):
    monkeypatch.setattr(device, "ascend_chip", lambda: chip)
    monkeypatch.setattr(backend, "device_target", lambda: "Ascend")
    assert choose_precision("Ascend", None) == default
    for precision in device.PRECISIONS:
        if precision in supported:
            assert choose_precision("Ascend", precision) == precision
        else:
            with pytest.raises(UserError, match=rf"--precision {precision}: Ascend \({chip}\) .*fp16, fp32"):
                choose_precision("Ascend", precision)
    assert Device("Ascend", 1, default).vae_dtype == device.PRECISIONS[autoencoder]
    assert Device("Ascend", 1, default, vae_precision="fp32").vae_dtype == device.PRECISIONS["fp32"]


def test_precision_on_a_cpu():
    assert choose_precision("CPU", None) == "fp32"
    for precision in device.PRECISIONS:
        assert choose_precision("CPU", precision) == precision
        assert Device("CPU", 1, precision).vae_dtype == device.PRECISIONS[precision]


def test_timeouts_of_hccl_are_raised_unless_set(monkeypatch):
    monkeypatch.setenv("HCCL_EXEC_TIMEOUT", "300")
    monkeypatch.setenv("HCCL_CONNECT_TIMEOUT", "0")  # restored after the test
    monkeypatch.delenv("HCCL_CONNECT_TIMEOUT")
    raise_timeouts()
    assert os.environ["HCCL_EXEC_TIMEOUT"] == "300" and os.environ["HCCL_CONNECT_TIMEOUT"] == "1800"


def test_unavailable_device_is_reported(run, script):
    absent = run(script, "--device", "Ascend")
    if absent.returncode == 0:
        pytest.skip("this machine has an Ascend")
    assert absent.returncode == 1 and "error: --device Ascend" in absent.stderr and "CPU" in absent.stderr
    assert "error: --use_parallel True needs msrun" in run(script, "--device", "CPU", "--use_parallel", "True").stderr


def test_msrun_processes_join(script, tmp_path):
    finished, logs = msrun(2, tmp_path / "logs", script, "--device", "CPU", "--use_parallel", "True")
    assert finished.returncode == 0, finished.stderr
    assert "rank 0 of 2" in "".join(logs) and "rank 1 of 2" in "".join(logs)
