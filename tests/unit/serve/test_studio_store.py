"""The store of the studio: order, changes of status, and what other files in its place do."""

from __future__ import annotations

import sqlite3

import pytest

from opensora.errors import UserError
from opensora.serve.store import CANCELLED, COMPLETED, FAILED, IN_PROGRESS, QUEUED, Speed, Store


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "queue.sqlite")
    yield opened
    opened.close()


def add(store: Store, name: str, priority: int = 0, prompt: str = "a prompt"):
    return store.add_job(name, {"prompt": prompt}, priority, "result.mp4")


def test_higher_priorities_come_first_then_earlier_jobs(store):
    for name, priority in (("a", 0), ("b", 0), ("c", 5), ("d", -1), ("e", 5)):
        add(store, name, priority)
    assert store.queue() == ["c", "e", "a", "b", "d"]
    started = [store.start_next().id for _ in range(5)]
    assert started == ["c", "e", "a", "b", "d"] and store.start_next() is None


def test_a_returned_job_has_its_old_place(store):
    for name in ("a", "b", "c"):
        add(store, name)
    assert store.start_next().id == "a" and store.requeue("a", died=True)
    assert store.queue() == ["a", "b", "c"]
    job = store.job("a")
    assert (job.status, job.attempts, job.deaths, job.started_at) == (QUEUED, 1, 1, None)


def test_completion_is_recorded_once(store):
    add(store, "a")
    store.start_next()
    assert store.complete("a") and not store.complete("a")
    assert not store.fail("a", "code", "message") and not store.cancel("a") and not store.requeue("a")
    job = store.job("a")
    assert (job.status, job.completions, job.error) == (COMPLETED, 1, None)


@pytest.mark.parametrize("end, status", [("cancel", CANCELLED), ("fail", FAILED)])
def test_ended_jobs_do_not_start_or_complete(store, end, status):
    add(store, "a")
    assert store.cancel("a") if end == "cancel" else store.fail("a", "worker_died", "why")
    assert store.start_next() is None and not store.complete("a")
    assert store.job("a").status == status


def test_only_ended_jobs_are_removed(store):
    add(store, "a")
    assert not store.remove_job("a")
    assert store.start_next().status == IN_PROGRESS and not store.remove_job("a")
    store.complete("a")
    assert store.remove_job("a") and store.job("a") is None


def test_lists_are_pages_from_new_to_old(store):
    prompts = ["a red circle", "a blue star", "A RED square", "100% red_ink"]
    jobs = [add(store, str(number), prompt=prompt) for number, prompt in enumerate(prompts)]
    assert [job.id for job in store.jobs(2)] == ["3", "2"]
    assert [job.id for job in store.jobs(2, before=jobs[2].number)] == ["1", "0"]
    assert [job.id for job in store.jobs(9, text="red")] == ["3", "2", "0"]
    assert [job.id for job in store.jobs(9, text="0% red_")] == ["3"]
    store.start_next()
    assert [job.id for job in store.jobs(9, status=IN_PROGRESS)] == ["0"]


def test_reopened_store_has_everything(tmp_path):
    first = Store(tmp_path / "queue.sqlite")
    add(first, "a")
    first.add_upload("file", kind="image", name="x.png", width=1, height=2, frames=1, fps=0.0)
    first.add_speed(Speed("model", "64x64x17", 50, {"denoise": 2.0}))
    first.set_count("key", {"flops": 1})
    second = Store(tmp_path / "queue.sqlite")  # as after SIGKILL: the first one was not closed
    assert second.queue() == ["a"] and second.upload("file").name == "x.png"
    assert second.speeds("model") == [Speed("model", "64x64x17", 50, {"denoise": 2.0})]
    assert second.count("key") == {"flops": 1} and second.count("other") is None
    assert second.upload_ids() == ["file"]
    second.remove_upload("file")
    assert second.upload("file") is None
    first.close()
    second.close()


def test_numbers_of_removed_jobs_are_not_used_again(store):
    add(store, "a")
    store.cancel("a")
    store.remove_job("a")
    assert add(store, "b").number == 2


def test_other_files_are_refused_in_a_line(tmp_path):
    path = tmp_path / "queue.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match=f"{path}: not a queue of this program"):
        Store(path)
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version=99")
    connection.execute("CREATE TABLE x (y)")
    connection.close()
    with pytest.raises(UserError, match="another version"):
        Store(path)
