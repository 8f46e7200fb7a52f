"""Parallel runs in several real processes under msrun."""

from __future__ import annotations

import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
from golden_cases import relative_difference
from processes import ROOT, free_port, msrun, msrun_command, slow
from raw_frames import max_level_difference
from tiny_models import make_release

from opensora.cli.tiny_release import LAYOUTS, write_release
from opensora.datasets.media import VideoReader


@pytest.mark.parametrize(
    "workers, sp_size, flags",
    [
        (2, 2, "--also_in_graph_mode"),
        (4, 2, "--not_decoding"),  # test_parallel_sampling_equals_one_process decodes in two groups
        slow(4, 4, "--also_in_graph_mode"),
        slow(4, 2, ""),
    ],
)
def test_collectives_and_sharded_models_match_one_process(workers, sp_size, flags, tmp_path):
    flags = f"--device CPU --use_parallel True --sp_size {sp_size} {flags}"
    finished, logs = msrun(workers, tmp_path, "tests/helpers/parallel_checks.py", *flags.split())
    assert finished.returncode == 0, logs[0][-3000:]
    unchecked = [log[-1000:] for rank, log in enumerate(logs) if f"CHECKED {rank}" not in log]
    assert len(logs) == workers and not unchecked, "\n".join(unchecked)


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    return make_release(tmp_path_factory.mktemp("release"))


@pytest.fixture(scope="module")
def sampled(release, tmp_path_factory) -> Callable[[int, str, str], tuple[list[str], Path]]:
    """`sampled(num_frames, kind, version)`: a command without its folder, and its results' folder on one process."""
    folder = tmp_path_factory.mktemp("one")

    def weights(version: str) -> str:
        if version == "v1_3":
            return (
                f"--model_path {release}/transformer --ae_path {release}/vae --text_encoder_name_1 {release}/text "
                "--rescale_betas_zero_snr"
            )
        write_release(folder, version)
        layout = LAYOUTS[version]
        return (
            f"--model_path {folder / layout.release / next(iter(layout.transformers))} --ae_path "
            f"{folder / layout.release}/vae --text_encoder_name {folder / layout.text_encoder} --enable_tiling"
        )

    @cache
    def sample(num_frames: int, kind: str, version: str) -> tuple[list[str], Path]:
        command = f"tests/helpers/raw_frames.py opensora/sample/sample.py {weights(version)} \
            --num_frames {num_frames} --height 32 --width 64 --num_sampling_steps 2 --max_sequence_length 64 \
            --device CPU --text_prompt a b c {'--save_latents' if kind == '.npy' else ''}".split()
        output = folder / f"{version}-{num_frames}{kind}"
        subprocess.run([sys.executable, *command, "--save_img_path", output], cwd=ROOT, check=True)
        return command, output

    return sample


@pytest.mark.parametrize(
    "workers, sp_size, num_frames, kind, version",
    [
        (2, 1, 5, ".npy", "v1_3"),
        (2, 2, 5, ".npy", "v1_3"),
        (4, 2, 13, ".mp4", "v1_3"),
        (2, 2, 17, ".npy", "v1_0"),
        (2, 2, 41, ".mp4", "v1_2"),
        *[slow(workers, workers, frames, ".npy", "v1_3") for workers in (2, 4) for frames in (1, 17, 29, 93)],
        slow(4, 1, 17, ".npy", "v1_3"),
        slow(4, 2, 29, ".npy", "v1_3"),
        slow(4, 4, 93, ".mp4", "v1_3"),
        slow(4, 2, 65, ".mp4", "v1_1"),
    ],
)
def test_parallel_sampling_equals_one_process(workers, sp_size, num_frames, kind, version, sampled, tmp_path):
    command, alone = sampled(num_frames, kind, version)
    parallel = f"--save_img_path {tmp_path}/many --use_parallel True --sp_size {sp_size}".split()
    finished, logs = msrun(workers, tmp_path / "logs", *command, *parallel)
    assert finished.returncode == 0, logs[0][-3000:]
    names = sorted(path.name for path in alone.iterdir())
    assert sorted(path.name for path in (tmp_path / "many").iterdir()) == names and len(names) >= 6
    for name in names:
        one, many = alone / name, tmp_path / "many" / name
        if name.endswith(".mp4.npy"):
            if name.startswith(("EulerAncestralDiscrete_gs", "PNDM_gs")):
                continue  # the grid of all videos, made from what was compressed
            assert (
                len(np.load(one)) == num_frames and max_level_difference(many.with_suffix(""), one.with_suffix("")) <= 1
            )
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
def test_failed_process_ends_the_run(end, shown, tmp_path):
    port = free_port()
    command = f"tests/helpers/parallel_end.py --end {end} --wait_for {tmp_path}/now --device CPU --use_parallel True"
    popen = msrun_command(2, tmp_path / "logs", *command.split(), port=port)
    with open(tmp_path / "screen", "w") as screen:
        first = subprocess.Popen(**popen, stdout=screen, stderr=screen)
    deadline = time.monotonic() + 120
    while sum("JOINED" in log.read_text() for log in (tmp_path / "logs").glob("worker_*.log")) < 2:
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.5)
    if end == "error":  # the port is taken by the first run
        second, _ = msrun(2, tmp_path / "others", *command.split(), port=port)
        output = second.stdout + second.stderr
        assert second.returncode != 0 and f"cannot initialize the process group at 127.0.0.1:{port}" in output
        assert first.poll() is None
    (tmp_path / "now").touch()
    assert first.wait(timeout=60) != 0
    assert shown in (tmp_path / "screen").read_text()
