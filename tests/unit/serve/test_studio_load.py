"""Fifty jobs of ten clients, while the service is killed twenty times; memory over a hundred jobs."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest
from studio_runs import PROGRAM, RunningStudio, is_alive, studio

from opensora.serve.client import Client, StudioError

CLIENTS, JOBS_EACH, KILLS = 10, 5, 20
REAL = ("-m", "opensora.cli", "serve")
pytestmark = pytest.mark.slow
WAIT_SECONDS = 900.0


def make_all(address: str, number: int, finished: dict) -> None:
    """A client: adds its jobs, whatever happens to the service, and waits for each."""
    client, ids = Client(address), list[str]()
    for index in range(JOBS_EACH):
        prompt = f"client {number:02d} job {index:02d}"
        while True:
            try:
                # The answer of an earlier attempt may have been lost with the service.
                known = [job["id"] for job in client.list(query=prompt)]
                ids.append(known[0] if known else client.create(prompt, steps=3)["id"])
                break
            except (OSError, StudioError):
                time.sleep(0.2)
        time.sleep(random.random())
    for job_id in ids:
        while True:
            try:
                finished[job_id] = client.wait(job_id, timeout=WAIT_SECONDS)["status"]
                break
            except (OSError, httpx.TransportError):
                time.sleep(0.2)


@pytest.mark.parametrize("program", [(PROGRAM,), REAL], ids=["standin", "models"])
def test_nothing_is_lost_or_doubled_when_the_service_is_killed(tmp_path, program):
    data, generator = tmp_path / "data", random.Random(0)
    settings = dict(program=program, STANDIN_STEP_SECONDS="0.1")
    running = RunningStudio(data, "--rate_limit", "0", **settings).wait_until_up()
    port, finished = running.port, dict[str, str]()
    threads = [threading.Thread(target=make_all, args=(running.address, n, finished)) for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    start, pids = time.monotonic(), list[int]()
    try:
        for _ in range(KILLS):
            time.sleep(generator.uniform(0.1, 2.5 if program == (PROGRAM,) else 8))
            pids += running.worker_pids()
            running.kill()
            running = RunningStudio(data, "--rate_limit", "0", port=port, **settings)
            if generator.random() < 0.7:  # others are killed while they start
                running.wait_until_up()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - start
        running.wait_until_up()
    finally:
        running.stop()
    assert not any(map(is_alive, pids))

    rows = (
        sqlite3.connect(data / "queue.sqlite")
        .execute("SELECT id, prompt, status, completions, attempts, result FROM jobs")
        .fetchall()
    )
    results = [job_id for job_id, *_, result in rows if (data / "videos" / job_id / result).is_file()]
    made = Counter((data / "made.log").read_text().split()) if program == (PROGRAM,) else Counter(results)
    columns = {
        "jobs": len(rows),
        "kills": KILLS,
        "completed": sum(row[2] == "completed" for row in rows),
        "results": len(results),
        "completions recorded": sum(row[3] for row in rows),
        "starts of jobs": sum(row[4] for row in rows),
        "results of a job at most": max(made.values()),
        "seconds": round(seconds),
    }
    print("", *(f"| {' | '.join(map(str, line))} |" for line in (columns, columns.values())), sep="\n")
    assert len(rows) == CLIENTS * JOBS_EACH == len({row[1] for row in rows}) == len(finished)
    assert all(status == "completed" and completions == 1 for _, _, status, completions, _, _ in rows)
    assert len(results) == len(rows) and max(made.values()) == 1
    for job_id in results:
        assert not list((data / "videos" / job_id).glob("state.npz"))


@pytest.mark.parametrize("program", [(PROGRAM,), REAL], ids=["standin", "models"])
def test_memory_is_flat_over_a_hundred_jobs(tmp_path, program):
    with studio(tmp_path / "data", "--rate_limit", "0", program=program) as running:
        rows = []
        for number in range(1, 101):
            running.wait_for(running.create(f"number {number}", steps=2)["id"], seconds=300)
            if number in (10, 20, 50, 100):
                rows.append((number, resident(running.process.pid), *map(resident, running.worker_pids()[:1])))
        print(
            "\n| jobs | service MB | worker MB |", *("| " + " | ".join(map(str, row)) + " |" for row in rows), sep="\n"
        )
        (_, service, worker), (_, last_service, last_worker) = rows[2], rows[3]
        assert last_service < service + 10 and last_worker < worker + 20


def resident(pid: int) -> int:
    """Megabytes of memory that a process occupies."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
