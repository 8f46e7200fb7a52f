"""Training sharded over several real processes equals training on one process."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
from golden_cases import relative_difference
from processes import msrun
from zero_checks import HALF, make_model, make_optimizer, train, write_reference

from opensora.checkpoint.formats.safetensors import read_safetensors


@pytest.fixture(scope="module")
def references(tmp_path_factory) -> Callable[[str], Path]:
    """A function that returns a folder with the results of one process in a precision."""

    @cache
    def reference(precision: str) -> Path:
        folder = tmp_path_factory.mktemp("reference")
        write_reference(folder, precision)
        return folder

    return reference


@pytest.mark.parametrize(
    "workers, sp_size, mode, precision, stages",
    [
        (2, 1, 1, "fp32", ("0", "1", "2c", "3")),
        (2, 1, 1, "bf16", ("2", "3")),
        pytest.param(2, 2, 1, "fp16", ("3",), marks=pytest.mark.slow),
        pytest.param(2, 2, 1, "bf16", ("0", "2c"), marks=pytest.mark.slow),
        pytest.param(2, 1, 1, "fp16", ("1", "2c"), marks=pytest.mark.slow),
        pytest.param(4, 2, 1, "fp32", ("3",), marks=pytest.mark.slow),
        pytest.param(2, 1, 0, "fp32", ("2",), marks=pytest.mark.slow),
    ],
)
def test_zero_stages_equal_one_process(workers, sp_size, mode, precision, stages, references, tmp_path):
    reference = references(precision)
    flags = f"--device CPU --use_parallel True --sp_size {sp_size} --reference {reference} --mode {mode} --stages"
    stages = [*stages, "--precision", precision]
    finished, logs = msrun(workers, tmp_path, "tests/helpers/zero_checks.py", *flags.split(), *stages)
    assert finished.returncode == 0, finished.stdout[-1000:] + logs[0][-3000:]
    assert all(f"CHECKED {rank}" in log for rank, log in enumerate(logs)) and len(logs) == workers
    if "3" in stages and precision == "fp32":
        check_resume_on_one_process(reference / f"of_{workers}_{sp_size}", np.load(reference / "losses.npy"))


def check_resume_on_one_process(stored: Path, expected: np.ndarray) -> None:
    """Resumes on one process from the state that several processes stored."""
    model = make_model()
    model.load_torch_state(read_safetensors(stored / "weights.safetensors"))
    optimizer = make_optimizer(model)
    optimizer.load_state(
        {"steps": HALF + 2, "loss_scale": 1.0, "good_steps": 0}, read_safetensors(stored / "state.safetensors")
    )
    losses = train(model, optimizer, range(HALF + 2, HALF + 4))
    assert relative_difference(losses, expected[HALF + 2 : HALF + 4]) < 1e-4
