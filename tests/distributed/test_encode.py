"""opensora encode in processes that are killed, and on two processes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from latent_caches import encode_flags, files, make_training_folder, training_flags, without_models
from processes import ROOT, msrun
from training_runs import rows

from opensora.datasets.latents.cache import LatentCache

PROGRAM = "tests/helpers/latent_caches.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_training_folder(tmp_path_factory.mktemp("latents"))


@pytest.fixture(scope="module")
def uninterrupted(folder) -> Path:
    subprocess.run([sys.executable, PROGRAM, *encode_flags(folder, "one")], cwd=ROOT, check=True)
    return folder / "one"


def test_killed_run_resumes_with_the_same_files(folder, uninterrupted):
    output, command = folder / "killed", [sys.executable, PROGRAM, *encode_flags(folder, "killed")]
    for wanted in ("texts-0000-00030.safetensors", "latents-0000-00004.safetensors", "latents-0000-00009.json"):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (output / wanted).exists():
            time.sleep(0.0005)
        assert process.poll() is None
        process.kill()
        process.wait()
        assert not is_complete(output)
    # As if the last process had been killed while it wrote a shard, and before it listed another.
    (output / ".latents-0000-00012.0123abcd.part.safetensors").write_bytes(b"half")
    (output / "latents-0000-00013.safetensors").write_bytes(b"not listed")
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    assert files(output) == files(uninterrupted) and len(files(output)) > 80


def is_complete(folder: Path) -> bool:
    try:
        LatentCache(folder)
    except ValueError:
        return False
    return True


@pytest.mark.slow
def test_two_processes_make_and_use_the_same_cache(folder, uninterrupted):
    """Each process writes its own shards; training on two processes that share videos has the losses of one cache."""
    finished, logs = msrun(2, folder / "logs", PROGRAM, *encode_flags(folder, "two", "--use_parallel", "True"))
    assert finished.returncode == 0, logs[0][-3000:]
    assert {name[:12] for name in files(folder / "two") if name.startswith("latents")} == {
        "latents-0000",
        "latents-0001",
    }
    one, two = LatentCache(uninterrupted), LatentCache(folder / "two")
    for sample in range(32):
        np.testing.assert_allclose(one.crop(sample, 0)["moments"], two.crop(sample, 0)["moments"], atol=1e-6)
    common = "--use_parallel True --sp_size 2 --train_sp_batch_size 4 --max_train_steps 4".split()
    runs = [
        training_flags(folder, "parallel_pixels", *common),
        without_models(training_flags(folder, "parallel_one", *common, "--latent_cache", uninterrupted)),
        without_models(training_flags(folder, "parallel_two", *common, "--latent_cache", folder / "two")),
    ]
    program = "tests/helpers/training_program.py"
    finished, logs = msrun(2, folder / "training_logs", program, *(" ".join(run) for run in runs))
    assert finished.returncode == 0, logs[0][-3000:]
    pixels, first, second = (
        np.array(rows(folder / f"parallel_{name}", ("loss",)), float) for name in ("pixels", "one", "two")
    )
    assert len(pixels) == 4
    np.testing.assert_allclose(first, pixels, rtol=1e-6)
    np.testing.assert_allclose(second, pixels, rtol=1e-6)
