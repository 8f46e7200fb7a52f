"""The worker processes: starts them, restarts those that end, and passes messages.

Workers connect to a Unix socket and speak `opensora.serve.protocol`. Each holds a lock on DATA/worker-N.lock while it
lives, and ends when its connection does, however the service ended.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Callable, Optional

from opensora.errors import UserError
from opensora.serve.options import TOKEN
from opensora.serve.protocol import LONGEST_LINE, decode, encode
from opensora.utils.files import lock_file
from opensora.utils.logs import logger

STARTING, IDLE, BUSY, FAILING = STATES = ("starting", "idle", "busy", "failing")
FAILED_STARTS = 3  # after which a worker is failing
LONGEST_PAUSE = 60.0  # seconds between starts
SOCKET_NAME, LONGEST_SOCKET = "workers.sock", 100  # bytes of a path; the system allows 107
STOP_SECONDS, KILL_SECONDS = 3.0, 2.0  # for a worker to end when asked to, and after SIGTERM
OLD_WORKER_SECONDS = 30.0  # for the workers of a service that was killed to end
TAIL_LINES, TAIL_BYTES = 5, 4000  # of a log, in errors
VISIBLE = "ASCEND_RT_VISIBLE_DEVICES"  # devices that a process of CANN sees, which it numbers from 0
LARGEST_LOG = 8 << 20  # bytes; a longer log is replaced at the next start


class Worker:
    """A worker process or, with several ranks, a group of them.

    Attributes:
        job: id of the job that it works on.
        failed_starts: how often in a row it ended before it was ready.
        reason: why it last ended.
    """

    def __init__(self, number: int, ranks: int, log: Path):
        self.number, self.ranks, self.log = number, ranks, log
        self.state = STARTING
        self.job: Optional[str] = None
        self.failed_starts = 0
        self.reason = ""
        self.process: Optional[asyncio.subprocess.Process] = None
        self.connections: dict[int, asyncio.StreamWriter] = {}
        self.said_ready = False

    def send(self, message: Mapping[str, Any]) -> None:
        for connection in self.connections.values():
            connection.write(encode(message))

    def log_tail(self) -> str:
        """The last lines of its log."""
        with suppress(OSError), open(self.log, "rb") as file:
            file.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
            lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
            return " | ".join(lines[-TAIL_LINES:])
        return ""


class Workers:
    """Keeps the workers of a service running.

    Args:
        data: folder of the service.
        arguments: further arguments of a worker.
        on_message: called with a worker and its message, of rank 0.
        on_ready: called when a worker can take a job.
        on_end: called with a worker that ended by itself, which has `reason` and maybe a `job`.
    """

    def __init__(
        self,
        data: Path,
        count: int,
        ranks: int,
        arguments: Sequence[str],
        on_message: Callable[[Worker, Mapping[str, Any]], None],
        on_ready: Callable[[Worker], None],
        on_end: Callable[[Worker], None],
        program: Sequence[str] = ("-m", "opensora.serve.worker"),
    ):
        logs = data / "logs"
        logs.mkdir(exist_ok=True)
        self.all = [Worker(number, ranks, logs / f"worker-{number}.log") for number in range(count)]
        self._data, self._arguments, self._program = data, arguments, program
        self._on_message, self._on_ready, self._on_end = on_message, on_ready, on_end
        self._stopping = False
        self._tasks: list[asyncio.Task] = []
        self._server: Optional[asyncio.AbstractServer] = None
        self._socket = data / SOCKET_NAME
        self._temporary: Optional[Path] = None
        if len(os.fsencode(self._socket)) > LONGEST_SOCKET:
            self._temporary = Path(tempfile.mkdtemp(prefix="opensora-"))
            self._socket = self._temporary / SOCKET_NAME

    async def start(self) -> None:
        """Starts the workers; they are ready later."""
        self._socket.unlink(missing_ok=True)  # of a service that was killed
        mask = os.umask(0o177)  # no other user may pretend to be a worker
        try:
            self._server = await asyncio.start_unix_server(self._connected, str(self._socket), limit=LONGEST_LINE)
        finally:
            os.umask(mask)
        self._tasks = [asyncio.create_task(self._keep_running(worker)) for worker in self.all]

    async def stop(self) -> None:
        """Ends all workers within seconds."""
        self._stopping = True
        for worker, task in zip(self.all, self._tasks):
            worker.send({"type": "stop"})
            if worker.process is None or worker.process.returncode is not None:
                task.cancel()  # it waits for the next start
        _, late = await asyncio.wait(self._tasks, timeout=STOP_SECONDS)
        if late:
            self._signal(signal.SIGTERM)
            await asyncio.wait(late, timeout=KILL_SECONDS)
            self._signal(signal.SIGKILL)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            self._server.close()
        self._socket.unlink(missing_ok=True)
        if self._temporary is not None:
            self._temporary.rmdir()

    def _signal(self, number: int) -> None:
        for worker in self.all:
            if worker.process is not None and worker.process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(worker.process.pid, number)

    async def _keep_running(self, worker: Worker) -> None:
        while not self._stopping:
            code = await self._run(worker)
            if self._stopping:
                return
            was_ready, worker.said_ready = worker.said_ready, False
            worker.failed_starts = 0 if was_ready else worker.failed_starts + 1
            how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
            worker.reason = f"worker {worker.number} ended {how}; {worker.log.name}: {worker.log_tail() or 'empty'}"
            worker.state = FAILING if worker.failed_starts >= FAILED_STARTS else STARTING
            logger.warning(worker.reason)
            self._on_end(worker)
            worker.job = None
            await asyncio.sleep(min(2.0**worker.failed_starts / 2, LONGEST_PAUSE))

    async def _run(self, worker: Worker) -> int:
        """Runs the process once; returns its exit code."""
        if worker.log.exists() and worker.log.stat().st_size > LARGEST_LOG:
            worker.log.replace(worker.log.with_suffix(".old.log"))
        with open(worker.log, "ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self._command(worker),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment(worker),
                start_new_session=True,  # Ctrl-C at a terminal reaches the service only
            )
        worker.process = process
        try:
            return await process.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it started
            for connection in worker.connections.values():
                connection.close()
            worker.connections.clear()

    def _command(self, worker: Worker) -> list[str]:
        arguments = [
            *self._program,
            "--socket",
            str(self._socket),
            "--worker_number",
            str(worker.number),
            "--data",
            str(self._data),
            *self._arguments,
        ]
        if worker.ranks == 1:
            return [sys.executable, *arguments]
        return [
            sys.executable,
            "-m",
            "opensora.launch",
            f"--worker_num={worker.ranks}",
            f"--local_worker_num={worker.ranks}",
            f"--master_port={_free_port()}",
            f"--log_dir={worker.log.with_suffix('')}",
            "--join=True",
            "python",  # msrun knows no other name; the environment finds this interpreter first
            *arguments,
            "--use_parallel",
            "True",
        ]

    def _environment(self, worker: Worker) -> dict[str, str]:
        """That of this process without its token, with this package and its interpreter found first.

        Each of several workers sees NPUs of its own.
        """
        own = own_devices(worker.number, worker.ranks, os.environ.get(VISIBLE)) if len(self.all) > 1 else None
        return {
            **{name: value for name, value in os.environ.items() if name != TOKEN},
            **({VISIBLE: own} if own else {}),
            "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path),
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        }

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serves the connection of a rank, from its `hello` to its end."""
        try:
            hello = decode(await reader.readline())
            if hello.get("type") != "hello" or not 0 <= hello["worker"] < len(self.all) or self._stopping:
                return
            worker = self.all[hello["worker"]]
            worker.connections[hello["rank"]] = writer
            self._check_ready(worker)
            while line := await reader.readline():
                if hello["rank"] == 0:
                    self._received(worker, decode(line))
        except (ValueError, KeyError, ConnectionError) as error:
            logger.warning(f"a worker sent an unreadable message ({error!r:.200}); it is ended")
            self._end(writer)
        finally:
            writer.close()

    def _end(self, writer: asyncio.StreamWriter) -> None:
        for worker in self.all:
            if writer in worker.connections.values() and worker.process is not None:
                with suppress(ProcessLookupError):
                    worker.process.kill()

    def _received(self, worker: Worker, message: Mapping[str, Any]) -> None:
        if message["type"] == "ready":
            worker.said_ready = True
            self._check_ready(worker)
        else:
            self._on_message(worker, message)

    def _check_ready(self, worker: Worker) -> None:
        if worker.said_ready and len(worker.connections) == worker.ranks and worker.job is None:
            worker.state, worker.failed_starts, worker.reason = IDLE, 0, ""
            self._on_ready(worker)


def own_devices(number: int, ranks: int, visible: Optional[str]) -> str:
    """The NPUs of a worker, as ASCEND_RT_VISIBLE_DEVICES lists them: the next `ranks` of those that the service sees.

    Args:
        number: of the worker.
        visible: the variable of the service; None: it sees all.
    """
    first, end = number * ranks, (number + 1) * ranks
    return ",".join(visible.split(",")[first:end] if visible else map(str, range(first, end)))


def check_devices(workers: int, ranks: int) -> None:
    """Raises UserError if the service sees fewer NPUs than its workers need."""
    visible = os.environ.get(VISIBLE)
    if workers > 1 and visible and len(visible.split(",")) < workers * ranks:
        raise UserError(
            f"{VISIBLE}={visible}: {workers} workers of {ranks} devices need {workers * ranks}; lower --worker_num"
        )


def wait_for_old_workers(data: Path) -> None:
    """Waits until the workers of an earlier service, which was killed, have ended.

    Raises:
        UserError: one of them does not.
    """
    deadline = time.monotonic() + OLD_WORKER_SECONDS
    for path in sorted(data.glob("worker-*.lock")):
        while (descriptor := lock_file(path)) is None:
            if time.monotonic() > deadline:
                raise UserError(f"{path}: a worker of an earlier service still runs; end it, or choose another --data")
            time.sleep(0.05)
        os.close(descriptor)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
