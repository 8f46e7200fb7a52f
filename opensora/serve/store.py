"""The jobs, uploads and measured speeds of a service, in one SQLite file.

The service process has one connection and uses it from one thread. Every change is a transaction that is on the disk
when the method returns, so that a job whose creation was answered is never lost. Changes of a job's status name the
status that they expect: of two that compete, one has an effect.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Optional

from opensora.errors import UserError

VERSION = 1
QUEUED, IN_PROGRESS, COMPLETED, FAILED, CANCELLED = STATUSES = (
    "queued",
    "in_progress",
    "completed",
    "failed",
    "cancelled",
)
FINAL = (COMPLETED, FAILED, CANCELLED)
MOST_SPEEDS = 1000  # measurements that are kept

# completions counts how often a job was recorded as completed: 0 or 1.
SCHEMA = """
CREATE TABLE jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    priority INTEGER NOT NULL,
    spec TEXT NOT NULL,
    prompt TEXT NOT NULL,
    result TEXT NOT NULL,
    created_at REAL NOT NULL,
    started_at REAL,
    completed_at REAL,
    attempts INTEGER NOT NULL DEFAULT 0,
    deaths INTEGER NOT NULL DEFAULT 0,
    completions INTEGER NOT NULL DEFAULT 0,
    error TEXT
);
CREATE INDEX jobs_by_status ON jobs (status, priority DESC, number);
CREATE TABLE uploads (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    frames INTEGER NOT NULL,
    fps REAL NOT NULL,
    created_at REAL NOT NULL
);
CREATE TABLE speeds (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    model TEXT NOT NULL,
    shape TEXT NOT NULL,
    calls INTEGER NOT NULL,
    stages TEXT NOT NULL
);
CREATE TABLE counts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class Job(NamedTuple):
    """A row of the jobs; `spec` is the resolved request, `result` the file name of the video."""

    number: int
    id: str
    status: str
    priority: int
    spec: Mapping[str, Any]
    prompt: str
    result: str
    created_at: float
    started_at: Optional[float]
    completed_at: Optional[float]
    attempts: int
    deaths: int
    completions: int
    error: Optional[Mapping[str, str]]


class Upload(NamedTuple):
    number: int
    id: str
    kind: str
    name: str
    width: int
    height: int
    frames: int
    fps: float
    created_at: float


class Speed(NamedTuple):
    """A finished job's seconds by stage, and its calls of the transformer; `shape` is that of `estimates.shape_of`."""

    model: str
    shape: str
    calls: int
    stages: Mapping[str, float]


class Store:
    """Opens or creates the file.

    Raises:
        UserError: not a database of this service, or of another version of it.
    """

    def __init__(self, path: Path):
        self._connection = sqlite3.connect(str(path), isolation_level=None)
        try:
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=FULL")
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            tables = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise UserError(f"{path}: not a queue of this program ({error}); choose another --data") from error
        if version == 0 and not tables:
            self._connection.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version={VERSION}; COMMIT;")
        elif version != VERSION:
            raise UserError(f"{path}: made by another version of this program; choose another --data")

    def close(self) -> None:
        self._connection.close()

    # Jobs

    def add_job(self, job_id: str, spec: Mapping[str, Any], priority: int, result: str) -> Job:
        with self._transaction() as change:
            change(
                "INSERT INTO jobs (id, status, priority, spec, prompt, result, created_at) VALUES (?,?,?,?,?,?,?)",
                (job_id, QUEUED, priority, json.dumps(spec), spec["prompt"], result, time.time()),
            )
        job = self.job(job_id)
        assert job is not None
        return job

    def job(self, job_id: str) -> Optional[Job]:
        return next(self._jobs("WHERE id=?", (job_id,)), None)

    def jobs(self, limit: int, before: Optional[int] = None, text: str = "", status: Optional[str] = None) -> list[Job]:
        """Jobs from new to old: of a status, with a text in their prompt, older than a number."""
        conditions, values = ["1"], list[Any]()
        for condition, value in (
            ("number < ?", before),
            ("instr(lower(prompt), lower(?))", text or None),
            ("status = ?", status),
        ):
            if value is not None:
                conditions.append(condition)
                values.append(value)
        return list(self._jobs(f"WHERE {' AND '.join(conditions)} ORDER BY number DESC LIMIT ?", (*values, limit)))

    def unfinished(self) -> list[Job]:
        """The running jobs, then the queue in its order."""
        running = self._jobs("WHERE status=? ORDER BY number", (IN_PROGRESS,))
        return [*running, *self._jobs("WHERE status=? ORDER BY priority DESC, number", (QUEUED,))]

    def completed_since(self, moment: float) -> list[Job]:
        return list(self._jobs("WHERE completed_at >= ? ORDER BY completed_at LIMIT 1000", (moment,)))

    def queue(self) -> list[str]:
        """The ids of the queue in its order."""
        rows = self._connection.execute(
            "SELECT id FROM jobs WHERE status=? ORDER BY priority DESC, number", (QUEUED,)
        ).fetchall()
        return [job_id for (job_id,) in rows]

    def start_next(self) -> Optional[Job]:
        """Takes the first job of the queue, which is in progress from now on."""
        job = next(self._jobs("WHERE status=? ORDER BY priority DESC, number LIMIT 1", (QUEUED,)), None)
        if job is None:
            return None
        self._move(job.id, (QUEUED,), IN_PROGRESS, "started_at=?, attempts=attempts+1", (time.time(),))
        return self.job(job.id)

    def requeue(self, job_id: str, died: bool = False) -> bool:
        """Returns a running job to its place in the queue; `died`: because its worker did."""
        changes = "started_at=NULL, deaths=deaths+1" if died else "started_at=NULL"
        return self._move(job_id, (IN_PROGRESS,), QUEUED, changes)

    def complete(self, job_id: str) -> bool:
        """Records a result. False, without a change, if the job has a final status."""
        return self._move(
            job_id,
            (QUEUED, IN_PROGRESS),
            COMPLETED,
            "completed_at=?, completions=completions+1, error=NULL",
            (time.time(),),
        )

    def fail(self, job_id: str, code: str, message: str) -> bool:
        error = json.dumps({"code": code, "message": message})
        return self._move(job_id, (QUEUED, IN_PROGRESS), FAILED, "completed_at=?, error=?", (time.time(), error))

    def cancel(self, job_id: str) -> bool:
        return self._move(job_id, (QUEUED, IN_PROGRESS), CANCELLED, "completed_at=?", (time.time(),))

    def remove_job(self, job_id: str) -> bool:
        """Removes a job in a final status."""
        with self._transaction() as change:
            found = change("DELETE FROM jobs WHERE id=? AND status IN (?,?,?)", (job_id, *FINAL))
        return found.rowcount == 1

    def job_ids(self) -> set[str]:
        return {job_id for (job_id,) in self._connection.execute("SELECT id FROM jobs")}

    # Uploads

    def add_upload(self, upload_id: str, **fields: Any) -> Upload:
        values = {"id": upload_id, "created_at": time.time(), **fields}
        with self._transaction() as change:
            change(
                f"INSERT INTO uploads ({', '.join(values)}) VALUES ({', '.join('?' * len(values))})",
                tuple(values.values()),
            )
        upload = self.upload(upload_id)
        assert upload is not None
        return upload

    def upload(self, upload_id: str) -> Optional[Upload]:
        row = self._connection.execute("SELECT * FROM uploads WHERE id=?", (upload_id,)).fetchone()
        return Upload(*row) if row else None

    def upload_ids(self) -> list[str]:
        """From old to new."""
        return [upload_id for (upload_id,) in self._connection.execute("SELECT id FROM uploads ORDER BY number")]

    def remove_upload(self, upload_id: str) -> None:
        with self._transaction() as change:
            change("DELETE FROM uploads WHERE id=?", (upload_id,))

    # Estimates

    def add_speed(self, speed: Speed) -> None:
        with self._transaction() as change:
            change(
                "INSERT INTO speeds (model, shape, calls, stages) VALUES (?,?,?,?)",
                (speed.model, speed.shape, speed.calls, json.dumps(speed.stages)),
            )
            change("DELETE FROM speeds WHERE number <= (SELECT max(number) FROM speeds) - ?", (MOST_SPEEDS,))

    def speeds(self, model: str) -> list[Speed]:
        """The measurements of a model from new to old."""
        rows = self._connection.execute(
            "SELECT model, shape, calls, stages FROM speeds WHERE model=? ORDER BY number DESC", (model,)
        )
        return [Speed(name, shape, calls, json.loads(stages)) for name, shape, calls, stages in rows]

    def count(self, key: str) -> Optional[Any]:
        """What `set_count` stored."""
        row = self._connection.execute("SELECT value FROM counts WHERE key=?", (key,)).fetchone()
        return json.loads(row[0]) if row else None

    def set_count(self, key: str, value: Any) -> None:
        with self._transaction() as change:
            change("INSERT OR REPLACE INTO counts (key, value) VALUES (?,?)", (key, json.dumps(value)))

    def _jobs(self, rest: str, values: Sequence[Any]) -> Iterator[Job]:
        for row in self._connection.execute(f"SELECT {', '.join(Job._fields)} FROM jobs {rest}", values).fetchall():
            job = Job(*row)
            yield job._replace(spec=json.loads(row[4]), error=job.error and json.loads(row[13]))

    def _move(
        self, job_id: str, expected: Sequence[str], status: str, changes: str, values: Sequence[Any] = ()
    ) -> bool:
        with self._transaction() as change:
            found = change(
                f"UPDATE jobs SET status=?, {changes} WHERE id=? AND status IN ({', '.join('?' * len(expected))})",
                (status, *values, job_id, *expected),
            )
        return found.rowcount == 1

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection.execute
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
