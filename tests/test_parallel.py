"""Several processes, for real: msrun on this machine."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from golden_cases import relative_difference
from tiny_models import make_release

from opensora.device import Device
from opensora.parallel.groups import deal, sequence_group

MSRUN = Path(sys.executable).with_name("msrun")


def msrun(workers: int, port: int, log_dir: Path, *command) -> tuple[subprocess.CompletedProcess, list[str]]:
    """Runs a command under msrun; returns the launcher's process and each worker's log."""
    finished = subprocess.run(
        [MSRUN, f"--worker_num={workers}", f"--local_worker_num={workers}", f"--master_port={port}",
         f"--log_dir={log_dir}", "--join=True", *map(str, command)],
        cwd=ROOT, env={**os.environ, "PATH": f"{MSRUN.parent}:{os.environ['PATH']}"}, capture_output=True, text=True,
        timeout=600)
    return finished, [path.read_text() for path in sorted(log_dir.glob("worker_*.log"))]


@pytest.mark.parametrize("workers, sp_size", [(2, 2), (4, 2), (4, 4)])
@pytest.mark.parametrize("graph_mode", [False, True], ids=["pynative", "graph"])
def test_collectives_and_transformer(workers, sp_size, graph_mode, tmp_path):
    if graph_mode and workers == 4 and sp_size == 2:
        pytest.skip("told by the other two")
    finished, logs = msrun(workers, 8770 + workers + sp_size, tmp_path, "tests/parallel_checks.py", "--device", "CPU",
                           "--use_parallel", "True", "--sp_size", sp_size, "--mode", int(not graph_mode))
    assert finished.returncode == 0, logs[0][-3000:]
    assert all(f"CHECKED {rank}" in log for rank, log in enumerate(logs)) and len(logs) == workers


@pytest.mark.parametrize("workers, sp_size", [(2, 1), (2, 2), (4, 2)])
def test_sampling_gives_what_one_process_gives(workers, sp_size, tmp_path):
    release = make_release(tmp_path / "release")
    flags = ["opensora/sample/sample.py", "--model_path", release / "transformer", "--ae_path", release / "vae",
             "--text_encoder_name_1", release / "text", "--num_frames", 5, "--height", 32, "--width", 64,
             "--num_sampling_steps", 2, "--max_sequence_length", 64, "--rescale_betas_zero_snr", "--device", "CPU",
             "--text_prompt", "a", "b", "c", "--save_latents"]
    subprocess.run([sys.executable, *map(str, flags), "--save_img_path", tmp_path / "one"], cwd=ROOT, check=True)
    finished, logs = msrun(workers, 8790 + workers + sp_size, tmp_path / "logs", *flags, "--save_img_path",
                           tmp_path / "many", "--use_parallel", "True", "--sp_size", sp_size)
    assert finished.returncode == 0, logs[0][-3000:]
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == names and len(names) == 6
    for name in names:
        if name.endswith(".npy"):
            assert relative_difference(np.load(tmp_path / "many" / name), np.load(tmp_path / "one" / name)) < 1e-4
    assert sum("results in" in log for log in logs) == 1


def test_uneven_items_are_dealt_out():
    groups = [sequence_group(Device("CPU", 1, "fp32", rank, 4), 2, 4) for rank in (0, 2)]
    assert deal("abc", groups[0], in_step=True) == [("a", True), ("c", True)]
    assert deal("abc", groups[1], in_step=True) == [("b", True), ("a", False)]
    assert deal("abc", groups[1], in_step=False) == [("b", True)]


def test_sizes_that_cannot_be():
    eight = Device("CPU", 1, "fp32", rank=5, world_size=8)
    assert sequence_group(eight, 4, 24).ranks == (4, 5, 6, 7) and sequence_group(eight, 4, 24).index == 1
    assert sequence_group(eight, 1, 24).ranks == (5,)
    with pytest.raises(ValueError, match="8 processes.*1, 2, 4, 8"):
        sequence_group(eight, 3, 24)
    with pytest.raises(ValueError, match="6 attention heads.*1, 2, 3, 6"):
        sequence_group(eight, 4, 6)
