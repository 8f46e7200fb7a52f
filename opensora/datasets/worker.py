"""Data workers: processes that read samples and make batches, and that may crash, hang or be killed.

A worker is a fresh Python with the dataset and nothing else: it does not import the program's main module, and with it
MindSpore. Arrays come back in anonymous shared memory, so their size does not matter to the pipe, and nothing is left
behind however a process ends.

Before a worker reads a sample it tells its parent the name. If it then dies, or takes longer than
`opensora.datasets.broken.SECONDS` and is killed, the parent knows which sample was to blame. It starts another worker,
which makes the same batch again from the same seeds with that sample known to be broken.

A worker ends when its parent does: the kernel kills it then (Linux), and elsewhere it ends when the pipe closes.
It ignores SIGINT, SIGTERM and SIGHUP, which terminals and job schedulers send to all processes of a job: the parent
decides when it ends.
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
from multiprocessing import Pipe, reduction
from multiprocessing.connection import Connection
from typing import Callable, NamedTuple, Optional

import numpy as np

from opensora.datasets import broken
from opensora.datasets.sampler import Batch
from opensora.errors import UserError
from opensora.utils import logs
from opensora.utils.logs import logger
from opensora.utils.supervision import USER_SIGNALS, die_with_parent

MOST_DEATHS = 2 * broken.TRIES  # of workers, over one batch
SILENT_SECONDS = 600.0  # that a worker may take to start, or to make a batch of samples it has read
GRACE_SECONDS = 1.0  # that a late worker still gets: after a pause of the whole job every worker looks late
ALIGNMENT = 64  # bytes, of the arrays in shared memory
# Workers take one core each: the parallelism is that of the workers.
SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
OOM_SCORE = "500"  # out of memory, the kernel kills a worker rather than the training


class InHand(NamedTuple):
    """From a worker: the sample that it reads since `started` (time.monotonic); None after the last of a batch."""

    name: Optional[str]
    started: float


def make_batch(dataset, collate: Callable, wanted: Batch) -> dict:
    """Reads the samples of a batch; the same in every process."""
    items = [_item(dataset, index, np.random.default_rng(seed)) for index, seed in zip(wanted.indices, wanted.seeds)]
    return {**collate(items), "positions": wanted.positions}


def _item(dataset, index, rng: np.random.Generator) -> dict:
    """A sample. Datasets name what they read, see `broken.attempt`; for others the index has to do."""
    name = f"sample {index}"
    if name in broken.watch.lost:
        raise UserError(f"{name}: {broken.watch.lost[name]}")
    broken.watch.begin(name)
    return dataset.item(index, rng)


class Worker:
    """The parent's end of a worker; the process behind it is replaced when it dies.

    Args:
        number: for messages.
        dataset, collate: as `Loader` has them.
        lost: name -> reason of samples that ended a worker; shared by all workers, which add to it.
    """

    def __init__(self, number: int, dataset, collate: Callable, lost: dict[str, str]):
        self.number, self.dataset, self.collate, self.lost = number, dataset, collate, lost
        self._asked: deque[Batch] = deque()  # without an answer so far
        self._killed: set[str] = set()  # samples in hand when something else killed the worker
        self._start()

    def ask(self, wanted: Batch) -> None:
        self._asked.append(wanted)
        self._send((wanted, self.lost))

    def answer(self) -> dict:
        """The batch that was asked for first.

        Raises:
            UserError: it cannot be made, or workers die again and again over it.
        """
        for _ in range(MOST_DEATHS):
            answer = self._receive()
            if isinstance(answer, Exception):
                raise answer
            if answer is not None:
                self._asked.popleft()
                return answer
            reason = self._bury()
            self._start()
            for wanted in self._asked:
                self._send((wanted, self.lost))
        raise UserError(
            f"data worker {self.number} died {MOST_DEATHS} times over one batch, at last: {reason}. If "
            f"memory runs out, take fewer workers (--dataloader_num_workers) or smaller batches"
        )

    def _start(self) -> None:
        self.pipe, far_end = Pipe()
        self._in_hand, self._late = InHand(None, time.monotonic()), False
        # The kernel takes the end of the thread that starts a process for the end of its parent.
        parent = os.getpid() if threading.current_thread() is threading.main_thread() else 0
        command = "import sys; from opensora.datasets.worker import work; work(*map(int, sys.argv[1:]))"
        before = signal.pthread_sigmask(signal.SIG_BLOCK, USER_SIGNALS)  # inherited, until the worker ignores them
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", command, str(far_end.fileno()), str(parent)],
                pass_fds=[far_end.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, **SINGLE_THREADED, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        far_end.close()
        self.stop = weakref.finalize(self, _stop, self.process, self.pipe)  # also when the program ends
        self._send((self.dataset, self.collate))

    def _send(self, message) -> None:
        try:
            self.pipe.send(message)
        except OSError:
            pass  # it is dead, which `_receive` finds out

    def _receive(self):
        """The next answer; None if the worker is dead or late."""
        while True:
            try:
                self._late = not self.pipe.poll(self._patience())
                if self._late:
                    return None
                message = receive(self.pipe)
            except (EOFError, OSError):
                return None
            if isinstance(message, InHand):
                self._in_hand = message
            else:
                self._in_hand = InHand(None, time.monotonic())
                return message

    def _patience(self) -> float:
        """Seconds to wait for the next message."""
        return max(GRACE_SECONDS, self._in_hand.started + self._limit() - time.monotonic())

    def _limit(self) -> float:
        return SILENT_SECONDS if self._in_hand.name is None else broken.SECONDS

    def _bury(self) -> str:
        """Ends what is left of the process, puts the blame on the sample it had in hand, and returns the reason."""
        self.stop()
        name, code = self._in_hand.name, self.process.returncode
        if self._late:
            reason = str(broken.TooLate(self._limit()))
        elif code == -signal.SIGKILL:
            reason = "the data worker was killed: out of memory?"
        else:
            reason = f"the data worker crashed: {_exit_name(code)}"
        if name is None:
            return reason
        if self._late or code != -signal.SIGKILL or name in self._killed:
            self.lost[name] = reason
        self._killed.add(name)  # may have been the victim of others; the second time it is to blame
        logger.warning(f"data worker {self.number}: {broken.printable(name)}: {reason}")
        return reason


def _exit_name(code: Optional[int]) -> str:
    if code is None:
        return "it does not end"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _stop(process: subprocess.Popen, pipe: Connection) -> None:
    pipe.close()
    process.kill()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        pass  # waits for a disk or network that does not answer; dies as soon as that does


class _WorkerWatch(broken.Watch):
    """Tells the parent what is being read; the parent kills this process when that takes too long."""

    def __init__(self, pipe: Connection):
        self.pipe = pipe

    def begin(self, name: Optional[str]) -> None:
        send(self.pipe, InHand(name, time.monotonic()))

    def run(self, name: str, work: Callable[[], broken.Result]) -> broken.Result:
        self.begin(name)
        return work()


def work(descriptor: int, parent: int) -> None:
    """The life of a worker: makes the batches it is asked for over the pipe of this file descriptor.

    `parent` is the id of the process that it dies with, 0 if that can be told by the pipe alone.
    """
    for number in USER_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, USER_SIGNALS)
    if parent and not die_with_parent(parent):  # even if it is stuck in a decoder then
        return
    _be_the_first_to_go()
    logs.configure()
    pipe = Connection(descriptor)
    broken.watch = watch = _WorkerWatch(pipe)
    try:
        dataset, collate = pipe.recv()
        while True:
            wanted, watch.lost = pipe.recv()
            try:
                answer = make_batch(dataset, collate, wanted)
            except (BrokenPipeError, ConnectionResetError):
                raise
            except (UserError, OSError) as error:
                answer = UserError(str(error))
            except Exception:  # a fault of the program
                answer = RuntimeError(f"a data worker failed:\n{traceback.format_exc()}")
            send(pipe, answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone or needs no more


def _be_the_first_to_go() -> None:
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(OOM_SCORE)
    except OSError:
        pass  # not Linux, or already higher


def send(pipe: Connection, message) -> None:
    """Sends a message; the memory of its arrays is handed over as an open file, not through the pipe."""
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


def receive(pipe: Connection):
    """The message that `send` sent. Its arrays lie in shared memory, which is freed with the last of them."""
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
    """A file without a name: memory on Linux, elsewhere a temporary file."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("batch"), "r+b")
    return tempfile.TemporaryFile()
