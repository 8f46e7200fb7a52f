"""Choice of device, precision and processes, each in a new process."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import ROOT, msrun

from opensora.device import choose_precision

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
        script, "--device", "CPU", "--mode", 0, "--precision", "bf16", "--jit_level", "O0", "--max_device_memory", "4GB"
    )
    assert "RESULT CPU mode=0 Float32" in finished.stdout
    assert finished.stderr.count("a CPU does not run bf16 here; running fp32 instead") == 1


def test_precision_defaults_depend_on_the_target():
    assert choose_precision("Ascend", None) == "bf16" and choose_precision("CPU", None) == "fp32"
    assert choose_precision("Ascend", "fp16") == "fp16" and choose_precision("CPU", "fp16", quiet=True) == "fp32"


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
