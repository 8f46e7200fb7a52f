"""The command on this machine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from opensora.doctor import end_to_end
from opensora.doctor.checks import CHECKS, FAILED, OK, SKIPPED, STATUSES, WARNING, Row
from opensora.doctor.report import exit_status, report, table


@pytest.fixture(scope="module")
def whole_run(run, tmp_path_factory):
    """(the finished process, the content of its JSON)."""
    path = tmp_path_factory.mktemp("doctor") / "report.json"
    finished = run("-m", "opensora.doctor", "--device", "CPU", "--json", path)
    return finished, json.loads(path.read_text())


def test_all_checks_run(whole_run):
    _, content = whole_run
    assert list(dict.fromkeys(row["check"] for row in content["rows"])) == [check.name for check in CHECKS]
    assert all(row["status"] in STATUSES and row["seconds"] >= 0 for row in content["rows"])
    supported = [row["name"] for row in content["rows"] if row["check"] == "sample" and row["status"] != SKIPPED]
    assert "fp32" in supported
    for precision in supported:
        rows = [row for row in content["rows"] if row["check"] == f"primitives-{precision}"]
        assert len([row for row in rows if row["name"].endswith(" forward")]) > 35
        assert len([row for row in rows if row["name"].endswith(" backward")]) > 25


def test_nothing_fails(whole_run):
    finished, content = whole_run
    assert [row for row in content["rows"] if row["status"] == FAILED] == [] and finished.returncode == 0
    sampled = {row["name"]: row for row in content["rows"] if row["check"] == "sample"}
    assert sampled["fp32"]["status"] == OK
    assert set(sampled["fp32"]["numbers"]["errors"]) == {"text", "latents", "frames"}
    assert content["exit_status"] == 0 and "Traceback" not in finished.stderr


def test_table_and_progress(whole_run):
    finished, content = whole_run
    counts = {status: sum(row["status"] == status for row in content["rows"]) for status in STATUSES}
    last = finished.stdout.splitlines()[-1]
    assert last.startswith(f"{counts[OK]} ok, {counts[WARNING]} warning")
    assert last.endswith(f", {counts[FAILED]} failed, {counts[SKIPPED]} skipped")
    assert "norms.rms_norm" in finished.stdout and "needs several processes" in finished.stdout
    assert all(f"{check.name}: " in finished.stderr for check in CHECKS)


def test_json_has_no_private_data(whole_run, monkeypatch):
    _, content = whole_run
    assert set(content) == {"format", "opensora", "time", "seconds", "exit_status", "rows"}
    assert str(Path.home()) not in json.dumps(content) or str(Path.home()) == "/"
    monkeypatch.setenv("HOME", "/home/someone")
    row = Row(
        FAILED, "no /home/someone/x", numbers={"path": ["/home/someone"], "error": float("inf")}, check="a", name="b"
    )
    (shown,) = report([row], 1.0)["rows"]
    assert (shown["detail"], shown["numbers"]) == ("no ~/x", {"path": ["~"], "error": None})


def test_chosen_checks(run):
    finished = run("-m", "opensora.cli", "doctor", "--only", "versions", "system", "--device", "CPU")
    assert finished.returncode == 0 and finished.stdout.startswith("versions\n") and "\nsystem\n" in finished.stdout
    assert "primitives" not in finished.stdout


def test_failure_is_the_exit_status(run, monkeypatch):
    monkeypatch.setenv("ASCEND_RT_VISIBLE_DEVICES", "one")
    finished = run("-m", "opensora.doctor", "--only", "variables")
    assert finished.returncode == 1 and "FAILED   devices" in finished.stdout
    assert "ASCEND_RT_VISIBLE_DEVICES: should be numbers of devices" in finished.stdout


def test_list_of_checks(run):
    finished = run("-m", "opensora.doctor", "--list")
    assert [line.split()[0] for line in finished.stdout.splitlines()] == [check.name for check in CHECKS]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--only", "version"], "--only 'version' is not one of versions, variables"),
        (["--timeout", "0"], "--timeout 0: should be a number of seconds above 0"),
        (["--json", "/tmp"], "--json /tmp: is a folder; name a file"),
    ],
)
def test_wrong_flags(flags, message, run):
    finished = run("-m", "opensora.doctor", *flags)
    assert finished.returncode == 1 and finished.stderr.startswith(f"error: {message}") and finished.stdout == ""


def test_statuses_and_remedies_are_shown():
    rows = [
        Row(OK, "fine", check="system", name="disk"),
        Row(WARNING, "port 1 is taken", "use another", check="system", name="ports"),
        Row(FAILED, "error 1e-01", "report it", {"error": 0.1, "milliseconds": 2.0}, "primitives-fp32", "a.b forward"),
        Row(OK, "", "", {"error": 1e-7, "milliseconds": 3.0}, "primitives-fp32", "a.b backward"),
        Row(OK, "", "", {"error": 1e-3, "milliseconds": 1.0}, "primitives-fp16", "a.b forward"),
    ]
    assert exit_status(rows) == 1 and exit_status(rows[:2]) == 0
    assert table(rows).splitlines() == [
        "system",
        "  ok       disk                   fine",
        "  WARNING  ports                  port 1 is taken",
        "  ports: use another",
        "",
        "primitives: relative error of output and gradient, and their time together",
        "       fp32                      fp16",
        "  a.b  FAILED  1e-07   5.0 ms    1e-03           1.0 ms",
        "  FAILED   a.b forward fp32: error 1e-01",
        "  report it",
        "",
        "3 ok, 1 warning, 1 failed, 0 skipped",
    ]


@pytest.mark.parametrize("run_name", ["sample", "training"])
def test_a_small_change_of_the_stored_numbers_is_found(run_name, monkeypatch, tmp_path):
    content = json.loads(end_to_end.EXPECTED.read_text())
    found = {name: np.array(values) for name, values in content[run_name].items()}
    device = type("Place", (), {"target": "CPU"})

    def stored(precision):
        return found

    stored.__name__ = run_name
    assert end_to_end.check(stored, "fp32", device).status == OK
    for name in found:
        changed = {**found, name: found[name] + 2e-3 * np.abs(found[name]).max()}
        stored_changed = type("Run", (), {"__name__": run_name, "__call__": lambda self, precision, c=changed: c})()
        assert end_to_end.check(stored_changed, "fp32", device).status == FAILED
    found["losses" if run_name == "training" else "frames"] = np.array([np.nan])
    assert end_to_end.check(stored, "fp32", device).status == FAILED
