"""--text_encoder_device CPU on a described machine: the text encoder runs in a real process on the CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mindspore as ms
import numpy as np
import pytest
from golden_cases import relative_difference
from mindspore import Tensor
from processes import ROOT, msrun
from tiny_models import make_release

from opensora.cli import sample
from opensora.device import Device
from opensora.models import MT5EncoderModel
from opensora.process.control import stat_field
from opensora.sample.host_text_encoder import HostTextEncoder

PROGRAM = ["tests/ascend/program.py", "--chip", "ascend910b", "--checks", "opensora.cli.sample"]
PARENT = 1  # a field of /proc/PID/stat
STEM = "EulerAncestralDiscrete_0_gs7.5_s2"
ON_ASCEND = Device("Ascend", 1, "fp32")


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    return make_release(tmp_path_factory.mktemp("release"))


@pytest.fixture
def flags(release) -> list[str]:
    return (
        f"--model_path {release}/transformer --ae_path {release}/vae --text_encoder_name_1 {release}/text "
        "--num_frames 5 --height 32 --width 64 --num_sampling_steps 2 --max_sequence_length 64 "
        "--rescale_betas_zero_snr --text_prompt a --save_latents --text_encoder_device CPU"
    ).split()


@pytest.mark.parametrize("weights", [None, "q8_0"])
def test_states_equal_those_of_this_process(release, weights, capfd):
    ids = np.random.default_rng(0).integers(3, 300, (3, 24), np.int32)
    mask = (np.arange(24) < np.array([[24], [9], [1]])).astype(np.int32)
    batches = [(Tensor(ids[:2]), Tensor(mask[:2])), (Tensor(ids[2:, :8]), Tensor(mask[2:, :8]))]
    own = MT5EncoderModel.from_pretrained(release / "text", weights=weights or "as_stored").set_train(False)
    found = HostTextEncoder(release / "text", weights, ON_ASCEND).encode(batches)
    for one, other in zip(found, own.encode(batches)):
        assert one.dtype == ms.float32 and one.asnumpy().tobytes() == other.asnumpy().tobytes()
    assert len(found) == 2 and "embedding texts on the CPU: 100%" in capfd.readouterr().err


def test_damaged_weights_are_reported(release, tmp_path):
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        (tmp_path / name).write_bytes((release / "text" / name).read_bytes()[:500])
    with pytest.raises(ValueError, match="diffusion_pytorch_model.safetensors: ") as error:
        HostTextEncoder(tmp_path, None, ON_ASCEND).encode([(Tensor([[3]], ms.int32), Tensor([[1]], ms.int32))])
    assert "\n" not in str(error.value)


def test_flag_changes_nothing_on_a_cpu(flags, tmp_path, capfd):
    for name, some in {"with": flags, "without": flags[:-2]}.items():
        sample.main([*some, "--device", "CPU", "--save_img_path", str(tmp_path / name)])
    assert (tmp_path / f"with/{STEM}.npy").read_bytes() == (tmp_path / f"without/{STEM}.npy").read_bytes()
    assert "embedding texts on the CPU" not in capfd.readouterr().err


def test_run_on_ascend_equals_a_cpu(flags, tmp_path, run):
    sample.main([*flags, "--device", "CPU", "--save_img_path", str(tmp_path / "cpu")])
    finished = run(*PROGRAM, *flags, "--device", "Ascend", "--precision", "fp32", "--save_img_path", tmp_path / "npu")
    assert finished.returncode == 0, finished.stderr
    assert "embedding texts on the CPU: 100%" in finished.stderr
    cpu, npu = (np.load(tmp_path / name / f"{STEM}.npy") for name in ("cpu", "npu"))
    assert relative_difference(npu, cpu) < 1e-4


@pytest.mark.slow
def test_ranks_that_share_a_video(flags, tmp_path):
    """Each rank starts a process of its own, which does not join the process group."""
    more = ["--device", "Ascend", "--precision", "fp32", "--use_parallel", "True", "--sp_size", "2"]
    finished, logs = msrun(2, tmp_path / "logs", *PROGRAM, *flags, *more, "--save_img_path", tmp_path / "out")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "embedding texts on the CPU: 100%" in logs[0] and "embedding texts" not in logs[1]
    sample.main([*flags, "--device", "CPU", "--save_img_path", str(tmp_path / "cpu")])
    cpu, npu = (np.load(tmp_path / name / f"{STEM}.npy") for name in ("cpu", "out"))
    assert relative_difference(npu, cpu) < 1e-4


@contextmanager
def interrupted_run(flags: list[str], folder: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """A run whose text encoder's process, the second one yielded, is stopped while it imports MindSpore."""
    more = ["--device", "Ascend", "--precision", "fp32", "--save_img_path", str(folder)]
    command = [sys.executable, *PROGRAM, *flags, *more]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        child = child_of(process)
        os.kill(child, signal.SIGSTOP)
        yield process, child
    finally:
        process.kill()
        process.wait()


def child_of(process: subprocess.Popen) -> int:
    """The process id of the text encoder's process once it has begun to import MindSpore."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        for pid in [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]:
            if stat_field(pid, PARENT) == str(process.pid) and "libmindspore" in maps(pid):
                return pid
        time.sleep(0.01)
    raise AssertionError(f"no process of the text encoder: {process.stderr and process.stderr.read()}")


def maps(pid: int) -> str:
    try:
        text = Path(f"/proc/{pid}/cmdline").read_text()
        return Path(f"/proc/{pid}/maps").read_text() if "text_encoder_process" in text else ""
    except OSError:
        return ""


def has_ended(pid: int) -> bool:
    deadline = time.monotonic() + 30
    while stat_field(pid, 0) not in (None, "Z") and time.monotonic() < deadline:
        time.sleep(0.01)
    return stat_field(pid, 0) in (None, "Z")


def test_killed_text_encoder_is_reported(flags, tmp_path):
    with interrupted_run(flags, tmp_path) as (process, child):
        os.kill(child, signal.SIGKILL)
        _, printed = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in printed
    assert printed.splitlines()[-1] == (
        "error: the process of the text encoder exited with code -9 after 0 of 2 texts (killed: out of memory?)"
    )


def test_text_encoder_dies_with_the_run(flags, tmp_path):
    with interrupted_run(flags, tmp_path) as (process, child):
        process.kill()
        assert has_ended(child)


def test_interrupt_ends_both(flags, tmp_path):
    """Ctrl-C in a terminal reaches both processes."""
    with interrupted_run(flags, tmp_path) as (process, child):
        os.killpg(process.pid, signal.SIGINT)
        os.kill(child, signal.SIGCONT)
        _, printed = process.communicate(timeout=60)
        assert has_ended(child)
    assert process.returncode == 130 and "Traceback" not in printed
    assert printed.splitlines()[-1] == "stopped by SIGINT"
