"""`opensora doctor` under msrun: all ranks check the collectives, rank 0 checks the rest and prints."""

from __future__ import annotations

import json

import pytest
from processes import msrun

COLLECTIVES = ["AllReduce", "AllGather", "ReduceScatter", "Broadcast", "AllToAll"]


@pytest.mark.parametrize("command", ["opensora/doctor/__main__.py", "python -m opensora.cli doctor"])
def test_collectives_are_checked_and_rank_0_prints(command, tmp_path):
    flags = f"--device CPU --only system collectives --json {tmp_path}/report.json"
    finished, logs = msrun(2, tmp_path / "logs", *command.split(), *flags.split())
    assert finished.returncode == 0, logs
    rows = {row["name"]: row for row in json.loads((tmp_path / "report.json").read_text())["rows"]}
    assert all(rows[name]["status"] == "ok" and len(rows[name]["numbers"]["GB/s"]) == 2 for name in COLLECTIVES)
    assert rows["ranks"]["detail"] == "no check has failed on 2 ranks" and rows["memory"]["check"] == "system"
    assert "\ncollectives\n" in logs[0] and "collectives\n" not in logs[1]
    assert "collectives: 9 ok" in logs[1] and "system: " not in logs[1]


def test_failure_on_rank_0_is_the_status_of_all_ranks(tmp_path, monkeypatch):
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "one")
    script = tmp_path / "doctor.sh"
    script.write_text("python -m opensora.cli doctor --device CPU --only variables\necho rank $RANK_ID status $?\n")
    finished, logs = msrun(2, tmp_path / "logs", "bash", script)
    assert [f"rank {rank} status 1" in log for rank, log in enumerate(logs)] == [True, True], logs
    assert "a check has failed on rank 0" in logs[0] and "1 failed" in logs[1]
