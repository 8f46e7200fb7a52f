"""Data workers: processes that read samples and make batches, and that may crash, hang or be killed.

A worker is a new Python process that loads only the dataset. It does not import the program's main module and
therefore not MindSpore. Arrays are returned in anonymous shared memory: their size does not load the pipe, and nothing
remains in the system however a process ends.

Before a worker reads a sample, it sends the sample's name to its parent. If the worker then dies, or exceeds
`opensora.datasets.broken.READ_TIMEOUT` and is killed, the parent knows the sample that caused it. The parent starts a
new worker, which makes the same batch from the same seeds and treats that sample as broken.

A worker ends when its parent does: on Linux the kernel kills it; elsewhere it ends when the pipe closes. It ignores
SIGINT, SIGTERM and SIGHUP, which terminals and job schedulers send to all processes of a job: the parent decides when a
worker ends.
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Sequence
from multiprocessing import Pipe, reduction
from multiprocessing.connection import Connection
from typing import Any, Callable, NamedTuple, Optional, Protocol, Union

import numpy as np

from opensora.datasets import broken
from opensora.datasets.sampler import BatchRequest
from opensora.errors import UserError
from opensora.process.control import USER_SIGNALS, die_with_parent
from opensora.utils import logs
from opensora.utils.logs import logger

MAX_DEATHS = 2 * broken.MAX_ATTEMPTS  # of workers, for one batch
IDLE_TIMEOUT = 600.0  # seconds to start a worker, or to collate a batch whose samples have been read
GRACE_SECONDS = 1.0  # added for a late worker: after a pause of the whole job, every worker seems late
ALIGNMENT = 64  # bytes, of arrays in shared memory
# Each worker uses one core: parallelism comes from the number of workers.
SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
OOM_SCORE = "500"  # if memory runs out, the kernel kills a worker rather than the training process

Collate = Callable[[Sequence[Any]], dict[str, Any]]


class Dataset(Protocol):
    """What workers read from."""

    def item(self, index: Any, rng: np.random.Generator, /) -> Any:
        """The sample `index`; all its random choices come from `rng`."""


class Progress(NamedTuple):
    """From a worker: the sample being read since `started` (time.monotonic()); None after the last of a batch."""

    name: Optional[str]
    started: float


def make_batch(dataset: Dataset, collate: Collate, request: BatchRequest) -> dict[str, Any]:
    """Reads and collates the samples of a batch; the result does not depend on the process."""
    items = [_item(dataset, index, np.random.default_rng(seed)) for index, seed in zip(request.indices, request.seeds)]
    return {**collate(items), "positions": request.positions}


def _item(dataset: Dataset, index: Any, rng: np.random.Generator) -> Any:
    """Reads a sample. Datasets report the names of files, see `broken.try_read`; otherwise the index is the name."""
    name = f"sample {index}"
    if name in broken.monitor.fatal:
        raise UserError(f"{name}: {broken.monitor.fatal[name]}")
    broken.monitor.begin(name)
    return dataset.item(index, rng)


class Worker:
    """The parent's handle of a worker process; a process that dies is restarted.

    Args:
        number: for messages.
        dataset, collate: see `Loader`.
        fatal: name -> reason, for samples that killed a worker; shared by all workers, which add to it.
    """

    def __init__(self, number: int, dataset: Dataset, collate: Collate, fatal: dict[str, str]):
        self.number, self.dataset, self.collate, self.fatal = number, dataset, collate, fatal
        self._requests: deque[BatchRequest] = deque()  # not yet answered
        self._suspects: set[str] = set()  # samples being read when SIGKILL ended the worker
        self._start()

    def submit(self, request: BatchRequest) -> None:
        self._requests.append(request)
        self._send((request, self.fatal))

    def result(self) -> dict[str, Any]:
        """The batch of the oldest request.

        Raises:
            UserError: the batch cannot be made, or it kills workers repeatedly.
        """
        for _ in range(MAX_DEATHS):
            answer = self._receive()
            if isinstance(answer, Exception):
                raise answer
            if answer is not None:
                self._requests.popleft()
                return answer
            reason = self._bury()
            self._start()
            for request in self._requests:
                self._send((request, self.fatal))
        raise UserError(
            f"data worker {self.number} died {MAX_DEATHS} times for one batch, the last time because: {reason}. If "
            f"memory runs out, use fewer workers (--dataloader_num_workers) or smaller batches"
        )

    def _start(self) -> None:
        self.pipe, worker_end = Pipe()
        self._progress, self._late = Progress(None, time.monotonic()), False
        # PR_SET_PDEATHSIG fires when the thread that started the process ends, so it is used from the main thread only.
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
        command = "import sys; from opensora.datasets.worker import work; work(*map(int, sys.argv[1:]))"
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, USER_SIGNALS)  # inherited, until the worker ignores them
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", command, str(worker_end.fileno()), str(parent)],
                pass_fds=[worker_end.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **SINGLE_THREADED, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        worker_end.close()
        self.stop = weakref.finalize(self, _stop, self.process, self.pipe)  # also at exit of the program
        self._send((self.dataset, self.collate))

    def _send(self, message: Any) -> None:
        try:
            self.pipe.send(message)
        except OSError:
            pass  # the worker is dead; `_receive` will notice

    def _receive(self) -> Any:
        """The next answer; None if the worker is dead or late."""
        while True:
            try:
                self._late = not self.pipe.poll(self._patience())
                if self._late:
                    return None
                message = receive(self.pipe)
            except (EOFError, OSError):
                return None
            if isinstance(message, Progress):
                self._progress = message
            else:
                self._progress = Progress(None, time.monotonic())
                return message

    def _patience(self) -> float:
        """Seconds to wait for the next message."""
        return max(GRACE_SECONDS, self._progress.started + self._timeout() - time.monotonic())

    def _timeout(self) -> float:
        return IDLE_TIMEOUT if self._progress.name is None else broken.READ_TIMEOUT

    def _bury(self) -> str:
        """Ends the process, blames the sample it was reading, and returns the reason."""
        self.stop()
        name, code = self._progress.name, self.process.returncode
        if self._late:
            reason = str(broken.ReadTimeout(self._timeout()))
        elif code == -signal.SIGKILL:
            reason = "the data worker was killed: out of memory?"
        else:
            reason = f"the data worker crashed: {_describe_exit(code)}"
        if name is None:
            return reason
        # SIGKILL may be the OOM killer, and another process may be at fault: the sample is blamed the second time only.
        if self._late or code != -signal.SIGKILL or name in self._suspects:
            self.fatal[name] = reason
        self._suspects.add(name)
        logger.warning(f"data worker {self.number}: {broken.printable(name)}: {reason}")
        return reason


def _describe_exit(code: Optional[int]) -> str:
    if code is None:
        return "it does not end"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _stop(process: subprocess.Popen, pipe: Connection) -> None:
    pipe.close()
    process.kill()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        pass  # blocked in uninterruptible I/O; it dies when the disk or network answers


class _WorkerMonitor(broken.ReadMonitor):
    """Reports to the parent which sample is being read; the parent kills this process when that takes too long."""

    def __init__(self, pipe: Connection):
        self.pipe = pipe

    def begin(self, name: str) -> None:
        send(self.pipe, Progress(name, time.monotonic()))

    def run(self, name: str, work: Callable[[], broken.Result]) -> broken.Result:
        self.begin(name)
        return work()


def work(descriptor: int, parent: int) -> None:
    """Main function of a worker: makes the batches requested over the pipe with this file descriptor.

    Args:
        parent: id of the process to die with, 0 to rely on the pipe alone.
    """
    for number in USER_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, USER_SIGNALS)
    if parent and not die_with_parent(parent):  # takes effect even while a decoder hangs
        return
    _raise_oom_score()
    logs.configure()
    pipe = Connection(descriptor)
    broken.monitor = monitor = _WorkerMonitor(pipe)
    try:
        dataset, collate = pipe.recv()
        while True:
            request, monitor.fatal = pipe.recv()
            answer: Union[dict, Exception]
            try:
                answer = make_batch(dataset, collate, request)
            except (BrokenPipeError, ConnectionResetError):
                raise
            except (UserError, OSError) as error:
                answer = UserError(str(error))
            except Exception:  # a bug
                answer = RuntimeError(f"a data worker failed:\n{traceback.format_exc()}")
            send(pipe, answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent has ended or closed the pipe


def _raise_oom_score() -> None:
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(OOM_SCORE)
    except OSError:
        pass  # not Linux, or already higher


def send(pipe: Connection, message: Any) -> None:
    """Sends a message; its arrays are passed as the descriptor of a shared memory file, not through the pipe."""
    arrays: list[pickle.PickleBuffer] = []
    skeleton = pickle.dumps(message, protocol=5, buffer_callback=arrays.append)
    views = [array.raw() for array in arrays]
    ends = np.cumsum([-(-view.nbytes // ALIGNMENT) * ALIGNMENT for view in views], dtype=int).tolist()
    spans = [(start, view.nbytes) for start, view in zip([0, *ends], views)]
    pipe.send((skeleton, spans))
    if not spans:
        return
    with _anonymous_file() as file:
        os.truncate(file.fileno(), ends[-1])
        with mmap.mmap(file.fileno(), ends[-1]) as memory:
            for (start, size), view in zip(spans, views):
                memory[start : start + size] = view
        reduction.send_handle(pipe, file.fileno(), None)


def receive(pipe: Connection) -> Any:
    """Receives a message from `send`. Its arrays share one memory mapping, which is freed with the last of them."""
    skeleton, spans = pipe.recv()
    if not spans:
        return pickle.loads(skeleton)
    descriptor = reduction.recv_handle(pipe)
    try:
        memory = memoryview(mmap.mmap(descriptor, 0))
    finally:
        os.close(descriptor)
    return pickle.loads(skeleton, buffers=[memory[start : start + size] for start, size in spans])


def _anonymous_file():
    """An anonymous file: in memory on Linux, elsewhere a temporary file."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("batch"), "r+b")
    return tempfile.TemporaryFile()
