"""Two processes on the described machines: collectives, sequence parallelism and ZeRO equal one process."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import msrun, slow
from standins.machine import A2, A3, FIRST_GENERATION
from zero_checks import write_reference

COLLECTIVES = "ops.AllGather ops.AllReduce ops.ReduceScatter ops.Broadcast".split()


def run(folder: Path, chip: str, checks: str, *flags: str, calls: list[str]) -> None:
    """Runs a module's checks in two processes, which must have called the operators `calls`."""
    command = f"tests/ascend/program.py --chip {chip} --checks {checks} --device Ascend --use_parallel True"
    finished, logs = msrun(2, folder, *command.split(), *flags, "--calls", *calls)
    assert finished.returncode == 0, finished.stdout[-1000:] + logs[0][-3000:]
    assert len(logs) == 2 and all(f"CHECKED {rank}" in log for rank, log in enumerate(logs))


@pytest.mark.parametrize(
    "chip, precision", [slow(A2, "fp32"), (A2, "fp16"), slow(A3, "fp16"), slow(FIRST_GENERATION, "fp16")]
)
def test_sequence_parallelism_equals_one_process(chip, precision, tmp_path):
    flags = f"--sp_size 2 --precision {precision}".split()
    run(tmp_path, chip, "parallel_checks", *flags, calls=[*COLLECTIVES, "ops.AlltoAll"])


def test_servers_without_all_to_all_gather(tmp_path):
    flags = "--sp_size 2 --precision fp32 --no_all_to_all --all_to_all gather --not_decoding".split()
    run(tmp_path, A2, "parallel_checks", *flags, calls=COLLECTIVES)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """A folder with the results of one process on a CPU."""
    folder = tmp_path_factory.mktemp("reference")
    write_reference(folder, "fp32")
    return folder


@pytest.mark.parametrize("sp_size, stages", [(1, "0 2 3"), slow(1, "1 2c"), slow(2, "0 2c 3")])
def test_zero_stages_equal_one_process(sp_size, stages, reference, tmp_path):
    flags = f"--sp_size {sp_size} --precision fp32 --reference {reference} --stages {stages}".split()
    calls = ["ops.AllGather", "ops.AllReduce", "ops.ReduceScatter", *["ops.AlltoAll"] * (sp_size > 1)]
    run(tmp_path, A2, "zero_checks", *flags, calls=calls)
