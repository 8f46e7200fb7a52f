"""`opensora doctor` in several processes: all ranks check the collectives, rank 0 checks the rest and prints."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from processes import ROOT, free_port, msrun

COLLECTIVES = ["AllReduce", "AllGather", "ReduceScatter", "Broadcast", "AllToAll"]


def test_collectives_are_checked_under_msrun_and_rank_0_prints(tmp_path):
    flags = f"--device CPU --only system collectives --json {tmp_path}/report.json"
    finished, logs = msrun(2, tmp_path / "logs", "opensora/doctor/__main__.py", *flags.split())
    assert finished.returncode == 0, logs
    rows = {row["name"]: row for row in json.loads((tmp_path / "report.json").read_text())["rows"]}
    assert all(rows[name]["status"] == "ok" and len(rows[name]["numbers"]["GB/s"]) == 2 for name in COLLECTIVES)
    assert rows["all ranks"]["detail"] == "no check has failed on 2 ranks" and rows["memory"]["check"] == "system"
    assert "\ncollectives\n" in logs[0] and "collectives\n" not in logs[1]
    assert "collectives: 9 ok" in logs[1] and "system: " not in logs[1]


def test_failure_on_rank_0_is_the_exit_status_of_all_ranks(tmp_path):
    """The ranks are started without msrun, which does not show their exit statuses."""
    environment = {**os.environ, "MS_WORKER_NUM": "2", "MS_SCHED_HOST": "127.0.0.1", "MS_SCHED_PORT": str(free_port())}
    environment["ASCEND_RT_VISIBLE_DEVICES"] = "one"
    roles = {
        "scheduler": {"MS_ROLE": "MS_SCHED"},
        "rank 0": {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": "0", "RANK_ID": "0"},
        "rank 1": {"MS_ROLE": "MS_WORKER", "MS_NODE_ID": "1", "RANK_ID": "1"},
    }
    command = [sys.executable, "-m", "opensora.cli", "doctor", "--device", "CPU", "--only", "variables"]
    started = {}
    for name, variables in roles.items():
        with open(tmp_path / name, "w") as log:
            settings = {"cwd": ROOT, "env": {**environment, **variables}, "stdout": log, "stderr": log}
            started[name] = subprocess.Popen(command, **settings)
    logs = {name: tmp_path / name for name in roles}
    statuses = {name: process.wait(300) for name, process in started.items()}
    assert statuses["rank 0"] == statuses["rank 1"] == 1, (statuses, [log.read_text() for log in logs.values()])
    assert "a check has failed on rank 0" in logs["rank 0"].read_text()
    assert "collectives: 8 ok, 1 failed" in logs["rank 1"].read_text()
