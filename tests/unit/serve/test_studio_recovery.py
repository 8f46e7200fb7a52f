"""What survives the end of the service and of its workers, and what is refused at the start."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import ROOT, free_port
from studio_runs import RunningStudio, is_alive, studio


def made(running: RunningStudio) -> list[str]:
    """The ids of the videos that workers have made, in order and as often as they did."""
    path = running.data / "made.log"
    return path.read_text().split() if path.exists() else []


def until(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.03)


def test_killed_service_loses_nothing_and_leaves_no_process(tmp_path):
    with studio(tmp_path / "data") as first:
        slow = first.create("slow", steps=4, priority=10)
        waiting = [first.create(f"number {number}")["id"] for number in range(3)]
        cancelled = first.create("cancelled", priority=-5)["id"]
        first.http.post(f"/v1/videos/{cancelled}/cancel")
        first.wait_for(slow["id"], "in_progress")
        workers = first.worker_pids()
        assert workers
        first.kill()
        until(lambda: not any(map(is_alive, workers)), seconds=5)
    with studio(tmp_path / "data") as second:
        for job_id in (slow["id"], *waiting):
            assert second.wait_for(job_id)["status"] == "completed"
        assert second.job(slow["id"])["attempts"] == 2 and second.job(cancelled)["status"] == "cancelled"
        assert made(second) == [slow["id"], *waiting]


def test_finished_result_is_recorded_and_not_made_again(tmp_path):
    """As if the service was killed between the worker's rename and its message."""
    with studio(tmp_path / "data") as first:
        slow = first.create("slow", steps=50)["id"]
        first.wait_for(slow, "in_progress")
        first.kill()
    time.sleep(0.5)
    (tmp_path / "data/videos" / slow / "EulerAncestralDiscrete_0_gs4_s50.mp4").write_bytes(b"video")
    orphans = [tmp_path / "data" / name for name in (f"videos/video_{'0' * 32}", f"files/file_{'0' * 32}")]
    for orphan in orphans:
        orphan.mkdir()
    with studio(tmp_path / "data") as second:
        job = second.job(slow)
        assert job["status"] == "completed" and job["attempts"] == 1 and made(second) == []
        assert second.http.get(f"/v1/videos/{slow}/content").content == b"video"
        assert not any(orphan.exists() for orphan in orphans)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_everything_within_seconds(tmp_path, number):
    with studio(tmp_path / "data") as running:
        slow = running.create("slow", steps=50)["id"]
        running.wait_for(slow, "in_progress")
        workers = running.worker_pids()
        with running.http.stream("GET", "/v1/events") as events:
            next(events.iter_lines())
            start = time.monotonic()
            assert running.stop(number) == 0
        assert time.monotonic() - start < 10 and not any(map(is_alive, workers))
    with studio(tmp_path / "data") as second:
        assert second.job(slow)["status"] in ("queued", "in_progress")
        second.http.post(f"/v1/videos/{slow}/cancel")


def test_a_killed_worker_is_replaced_and_its_job_is_made(tmp_path):
    with studio(tmp_path / "data") as running:
        job_id = running.create("slow", steps=3)["id"]
        running.wait_for(job_id, "in_progress")
        for pid in running.worker_pids():
            os.kill(pid, signal.SIGKILL)
        job = running.wait_for(job_id)
        assert job["status"] == "completed" and job["attempts"] == 2 and made(running) == [job_id]


def test_a_worker_that_cannot_start_is_reported(tmp_path):
    with studio(tmp_path / "data", STANDIN_BROKEN="1") as running:
        job = running.wait_for(running.create()["id"])
        assert job["status"] == "failed" and job["error"]["code"] == "no_worker"
        assert "error: this worker cannot start" in job["error"]["message"]
        (worker,) = running.http.get("/v1/service").json()["workers"]
        assert worker["state"] == "failing" and "this worker cannot start" in worker["message"]


def test_two_workers_share_the_queue(tmp_path):
    with studio(tmp_path / "data", "--worker_num", "2") as running:
        until(lambda: [w["state"] for w in running.http.get("/v1/service").json()["workers"]] == ["idle", "idle"])
        jobs = [running.create("slow", steps=2)["id"] for _ in range(2)]
        for job_id in jobs:
            running.wait_for(job_id, "in_progress")
        assert {w["job"] for w in running.http.get("/v1/service").json()["workers"]} == set(jobs)
        assert all(running.wait_for(job_id)["status"] == "completed" for job_id in jobs)


def refused(*flags) -> str:
    """The only line of a service that does not start."""
    command = [sys.executable, "-m", "opensora.cli", "serve", *map(str, flags)]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 1 and not finished.stdout
    (line,) = finished.stderr.splitlines()
    return line


def test_a_folder_has_one_service(tmp_path):
    with studio(tmp_path / "data"):
        line = refused("--port", free_port(), "--data", tmp_path / "data")
    assert line.startswith(f"error: {tmp_path / 'data'}: another run writes to this folder")


def test_a_port_in_use_is_refused(tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        line = refused("--port", other.getsockname()[1], "--data", tmp_path / "data")
    assert "address already in use; choose another --port" in line


def test_wrong_weights_are_refused(tmp_path):
    flags = ("--port", free_port(), "--data", tmp_path / "data", "--model_path", tmp_path, "--ae_path", tmp_path)
    assert str(tmp_path) in refused(*flags, "--text_encoder_name_1", tmp_path)


def test_a_worker_of_a_killed_service_is_waited_for(tmp_path):
    """A worker that still runs holds its lock; the new service starts when it has ended."""
    (tmp_path / "data").mkdir()
    program = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); "
        "print('locked', flush=True); time.sleep(3)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "data/worker-7.lock"], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "locked\n"
    with studio(tmp_path / "data"):
        assert holder.poll() == 0
    holder.stdout.close()


def test_folders_with_long_names(tmp_path):
    """Paths of sockets have a limit that paths of folders do not have."""
    data = tmp_path / ("x" * 120) / "data"
    data.parent.mkdir()
    with studio(data) as running:
        assert running.wait_for(running.create()["id"])["status"] == "completed"


def test_missing_extra_is_one_line(tmp_path):
    program = (
        "import sys; sys.modules['fastapi'] = None; from opensora.cli.main import main; "
        f"main(['serve', '--data', {str(tmp_path / 'data')!r}])"
    )
    finished = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 1 and finished.stderr.count("\n") == 1
    assert "pip install 'opensora-mindspore[studio]'" in finished.stderr


def test_the_service_does_not_import_mindspore(tmp_path):
    with studio(tmp_path / "data") as running:
        loaded = Path(f"/proc/{running.process.pid}/maps").read_text()
        assert "mindspore" not in loaded and "numpy" in loaded


def test_slow_readers_of_events_cost_nothing(tmp_path):
    """Connections that never read do not hold back others, nor grow."""
    with studio(tmp_path / "data", "--rate_limit", "0") as running:
        silent = []
        for _ in range(50):
            connection = socket.create_connection(("127.0.0.1", running.port))
            connection.sendall(b"GET /v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            silent.append(connection)
        ids = [running.create(f"number {number}", steps=20)["id"] for number in range(20)]
        start = time.monotonic()
        for job_id in ids:
            assert running.wait_for(job_id)["status"] == "completed"
        assert time.monotonic() - start < 60
        for connection in silent:
            connection.close()
