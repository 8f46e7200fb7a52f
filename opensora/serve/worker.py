"""The worker of the service, python -m opensora.serve.worker: takes jobs from a socket and makes their videos.

Under msrun several processes make each video together. All of them get every message, and the first one answers. A
worker ends at once when its connection does, so that nothing outlives the service.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Optional

from opensora.process.supervision import is_supervised, supervise

if __name__ == "__main__":
    supervise()  # under msrun, before MindSpore is imported

from opensora.config.command_line import parse_flags, run_main
from opensora.config.device import DeviceOptions
from opensora.config.lora import parse_loras
from opensora.config.memory import MemoryOptions
from opensora.config.options import from_mapping, option
from opensora.process.control import die_with_parent
from opensora.sample.options import SampleOptions
from opensora.serve.protocol import decode, encode
from opensora.utils.files import lock_file
from opensora.utils.logs import logger

CANCEL, JOB, STOP = "cancel", "job", "stop"  # types of messages of the service
LOCK_POLL = 0.1  # seconds


@dataclass(frozen=True)
class WorkerOptions:
    """Flags of a worker, which the service sets."""

    socket: str = option(help="Unix socket of the service")
    # Not --worker, which msrun would take for an abbreviation of its own flags.
    worker: int = option(help="number of this worker", name="worker_number")
    data: str = option(help="folder of the service")
    preview_interval: float = option(5.0, "seconds between previews of a video; 0: none")
    state_interval: float = option(
        10.0, "seconds between saved states of a video, with which an interrupted job continues"
    )


class Connection:
    """The connection of one process to the service. A thread reads it, so that a job can be cancelled while it runs."""

    def __init__(self, path: str, hello: Mapping[str, Any], speaks: bool):
        self.jobs: queue.Queue[dict[str, Any]] = queue.Queue()
        self.cancelled: set[str] = set()
        self._speaks, self._lock = speaks, threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)
        self._socket.sendall(encode({"type": "hello", **hello}))
        threading.Thread(target=self._listen, daemon=True).start()

    def send(self, kind: str, **values: Any) -> None:
        """Sends a message, if this process speaks for its worker."""
        if self._speaks:
            with self._lock:
                self._socket.sendall(encode({"type": kind, **values}))

    def _listen(self) -> None:
        try:
            with self._socket.makefile("rb") as lines:
                for line in lines:
                    message = decode(line)
                    if message["type"] == STOP:
                        break
                    if message["type"] == CANCEL:
                        self.cancelled.add(message["id"])
                    elif message["type"] == JOB:
                        self.jobs.put(message)
        finally:
            os._exit(0)  # a step may take minutes, and its result would be lost in any case


class Worker:
    """Makes the videos of jobs, one at a time."""

    def __init__(self, options: WorkerOptions, memory: MemoryOptions, device: Any, connection: Connection):
        from opensora.serve.video_maker import VideoMaker

        self.options, self.memory, self.device, self.connection = options, memory, device, connection
        self.maker = VideoMaker(device)

    def run(self) -> None:
        """Works until the connection ends."""
        self.connection.send("ready")
        while True:
            job = self.connection.jobs.get()
            self.work(job["id"], Path(job["folder"]), job["options"])
            self.connection.cancelled.discard(job["id"])

    def work(self, job: str, folder: Path, fields: Mapping[str, Any]) -> None:
        """Makes the video of a job; an error of the job does not end the worker."""
        from opensora.parallel.collectives import any_process
        from opensora.pipelines.monitor import Cancelled
        from opensora.serve.job_monitor import JobMonitor

        def send(kind: str, **values: Any) -> None:
            self.connection.send(kind, id=job, **values)

        def is_cancelled() -> bool:
            # A message does not reach all processes at the same step.
            return any_process(job in self.connection.cancelled, self.device.world_size)

        def make_monitor(decoder: Any) -> JobMonitor:
            intervals = self.options.preview_interval, self.options.state_interval
            return JobMonitor(folder, send, is_cancelled, decoder, fields["fps"], *intervals, self.device.is_main)

        try:
            loras = parse_loras(fields.get("lora", ()))
            own = {"lora": loras, "memory": self.memory.memory, "weights": self.memory.weights}
            options = SampleOptions(**{**fields, **own})
            seconds, calls = self.maker.make(options, partial(send, "stage"), make_monitor, is_cancelled)
        except Cancelled:
            send("cancelled")
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            if self.device.world_size > 1 and not isinstance(error, (ValueError, OSError)):
                raise  # the other processes may wait for this one
            logger.exception(f"{job} failed")
            send("failed", code="failed", message=" ".join(str(error).split()) or type(error).__name__)
        else:
            send("done", seconds={name: round(value, 3) for name, value in seconds.items()}, model_calls=calls)


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_flags("Makes videos for a service.", (WorkerOptions, MemoryOptions, DeviceOptions), argv)
    if not is_supervised() and not die_with_parent(os.getppid()):
        return
    options = from_mapping(WorkerOptions, vars(args))
    from opensora import device as devices

    device = devices.setup(args)
    if device.is_main:
        wait_for_lock(Path(options.data) / f"worker-{options.worker}.lock")
    hello = {"worker": options.worker, "rank": device.rank, "ranks": device.world_size, "pid": os.getpid()}
    connection = Connection(options.socket, hello, speaks=device.is_main)
    logger.info(f"worker {options.worker} is ready, process {device.rank} of {device.world_size}")
    Worker(options, from_mapping(MemoryOptions, vars(args)), device, connection).run()


def wait_for_lock(path: Path) -> None:
    """Takes the worker's lock until the process ends; the worker of an earlier service may still hold it."""
    while lock_file(path) is None:
        time.sleep(LOCK_POLL)


if __name__ == "__main__":
    run_main(main)
