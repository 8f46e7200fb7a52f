"""Several processes, for real: msrun on this machine."""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np
import pytest
from golden_cases import relative_difference
from processes import ROOT, free_port, msrun, msrun_command, slow
from raw_frames import largest_step
from tiny_models import make_release

from opensora.datasets.media import VideoReader
from opensora.device import Device
from opensora.parallel.groups import deal, sequence_group


@pytest.mark.parametrize(
    "workers, sp_size, graph_mode", [(2, 2, False), (4, 2, False), (2, 2, True), slow(4, 4, False), slow(4, 4, True)]
)
def test_collectives_and_transformer(workers, sp_size, graph_mode, tmp_path):
    finished, logs = msrun(
        workers,
        tmp_path,
        "tests/helpers/parallel_checks.py",
        "--device",
        "CPU",
        "--use_parallel",
        "True",
        "--sp_size",
        sp_size,
        "--mode",
        int(not graph_mode),
    )
    assert finished.returncode == 0, logs[0][-3000:]
    unchecked = [log[-1000:] for rank, log in enumerate(logs) if f"CHECKED {rank}" not in log]
    assert len(logs) == workers and not unchecked, "\n".join(unchecked)


@pytest.mark.parametrize(
    "workers, sp_size, num_frames, kind",
    [
        (2, 1, 5, ".npy"),
        (2, 2, 5, ".npy"),
        (4, 2, 13, ".mp4"),
        *[slow(workers, workers, frames, ".npy") for workers in (2, 4) for frames in (1, 17, 29, 93)],
        slow(4, 1, 17, ".npy"),
        slow(4, 2, 29, ".npy"),
        slow(4, 4, 93, ".mp4"),
    ],
)
def test_sampling_gives_what_one_process_gives(workers, sp_size, num_frames, kind, tmp_path):
    release = make_release(tmp_path / "release")
    flags = [
        "tests/helpers/raw_frames.py",
        "opensora/sample/sample.py",
        "--model_path",
        release / "transformer",
        "--ae_path",
        release / "vae",
        "--text_encoder_name_1",
        release / "text",
        "--num_frames",
        num_frames,
        "--height",
        32,
        "--width",
        64,
        "--num_sampling_steps",
        2,
        "--max_sequence_length",
        64,
        "--rescale_betas_zero_snr",
        "--device",
        "CPU",
        "--text_prompt",
        "a",
        "b",
        "c",
        *(["--save_latents"] if kind == ".npy" else []),
    ]
    subprocess.run([sys.executable, *map(str, flags), "--save_img_path", tmp_path / "one"], cwd=ROOT, check=True)
    finished, logs = msrun(
        workers,
        tmp_path / "logs",
        *flags,
        "--save_img_path",
        tmp_path / "many",
        "--use_parallel",
        "True",
        "--sp_size",
        sp_size,
    )
    assert finished.returncode == 0, logs[0][-3000:]
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == names and len(names) >= 6
    for name in names:
        one, many = tmp_path / "one" / name, tmp_path / "many" / name
        if name.endswith(".mp4.npy"):
            if "Discrete_gs" in name:
                continue  # the grid of all videos, made from what was compressed
            assert len(np.load(one)) == num_frames and largest_step(many.with_suffix(""), one.with_suffix("")) <= 1
        elif name.endswith(".npy"):
            difference = relative_difference(np.load(many), np.load(one))
            print(f"{workers} processes, sp_size {sp_size}, {num_frames} frames: {difference:.1e}")
            assert difference < 1e-4
        elif name.endswith(".mp4"):
            with VideoReader(many) as reader:
                assert len(reader) == num_frames
    assert sum("results in" in log for log in logs) == 1


@pytest.mark.parametrize(
    "end, shown",
    [("error", "ERROR in rank 1: clip.mp4: cannot be read"), ("kill", "ERROR in rank 1: ended by SIGKILL")],
)
def test_a_process_that_ends_takes_the_run_down(end, shown, tmp_path):
    port = free_port()
    flags = [
        "tests/helpers/parallel_end.py",
        "--end",
        end,
        "--wait_for",
        tmp_path / "now",
        "--device",
        "CPU",
        "--use_parallel",
        "True",
    ]
    with open(tmp_path / "screen", "w") as screen:
        first = subprocess.Popen(**msrun_command(2, tmp_path / "logs", *flags, port=port), stdout=screen, stderr=screen)
    deadline = time.monotonic() + 120
    while sum("JOINED" in log.read_text() for log in (tmp_path / "logs").glob("worker_*.log")) < 2:
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.5)
    if end == "error":  # the port is taken by the first run
        second, _ = msrun(2, tmp_path / "others", *flags, port=port)
        assert (
            second.returncode != 0
            and f"cannot initialize the process group at 127.0.0.1:{port}" in second.stdout + second.stderr
        )
        assert first.poll() is None
    (tmp_path / "now").touch()
    assert first.wait(timeout=60) != 0
    assert shown in (tmp_path / "screen").read_text()


def test_uneven_items_are_dealt_out():
    groups = [sequence_group(Device("CPU", 1, "fp32", rank, 4), 2, 4) for rank in (0, 2)]
    assert deal("abc", groups[0], in_step=True) == [("a", True), ("c", True)]
    assert deal("abc", groups[1], in_step=True) == [("b", True), ("c", False)]
    assert deal("abc", groups[1], in_step=False) == [("b", True)]


def test_sizes_that_cannot_be():
    eight = Device("CPU", 1, "fp32", rank=5, world_size=8)
    assert sequence_group(eight, 4, 24).ranks == (4, 5, 6, 7) and sequence_group(eight, 4, 24).index == 1
    assert sequence_group(eight, 1, 24).ranks == (5,)
    with pytest.raises(ValueError, match="8 processes.*1, 2, 4, 8"):
        sequence_group(eight, 3, 24)
    with pytest.raises(ValueError, match="6 attention heads.*1, 2, 3, 6"):
        sequence_group(eight, 4, 6)
