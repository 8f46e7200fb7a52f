"""Batches made ahead of time by processes of their own.

A worker is a fresh Python with the dataset and nothing else: it does not import the program's main module, and with it
MindSpore. Arrays come back in anonymous shared memory, so their size does not matter to the pipe, and nothing is left
behind however a process ends. A worker ends when the pipe to its parent closes.
"""
from __future__ import annotations

import mmap
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections import deque
from multiprocessing import Pipe, reduction
from multiprocessing.connection import Connection
from typing import Callable, Iterator, Sequence

import numpy as np

from opensora.datasets.collate import stack
from opensora.datasets.sampler import Batch, Sampler

ALIGNMENT = 64  # bytes, of the arrays in shared memory
# Workers take one core each: the parallelism is that of the workers.
SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


class Loader:
    """The batches of a sampler, in its order and without end; the sampler advances as they are handed out.

    Args:
        dataset: an object with `item(index, rng) -> dict of arrays`, with indices of the sampler; it is pickled to
            the workers.
        sampler: says what to read; its state is that of the batches handed out, not of those made ahead.
        collate: items -> batch, a dict of arrays, None and numbers; it is pickled, too.
        num_workers: processes that read; 0 reads in this one, when a batch is asked for.
        prefetch: batches ahead per worker.

    Each batch has `positions` besides what `collate` gives: (B,), the samples' places among all of the step.

    Attributes:
        wait_seconds, batches: how long the consumer has waited in all, and for how many batches.
        replaced: samples that were broken and others stood for.
    """

    def __init__(self, dataset, sampler: Sampler, collate: Callable[[Sequence[dict]], dict] = stack,
                 num_workers: int = 0, prefetch: int = 2):
        if num_workers < 0 or prefetch < 1:
            raise ValueError(f"num_workers {num_workers}, prefetch {prefetch}: should be at least 0 and 1")
        self.dataset, self.sampler, self.collate = dataset, sampler, collate
        self.num_workers, self.prefetch = num_workers, prefetch
        self.wait_seconds, self.batches, self.replaced = 0.0, 0, 0

    def __iter__(self) -> Iterator[dict]:
        """Starts the workers; they end with the iterator.

        Raises:
            ValueError: a batch could not be made, or a worker ended.
        """
        made = self._made_by_workers() if self.num_workers else self._made_here()
        while True:
            start = time.perf_counter()
            batch = next(made)
            self.wait_seconds += time.perf_counter() - start
            self.batches += 1
            self.replaced += batch.get("replaced", 0)
            self.sampler.advance()
            yield batch

    def _made_here(self) -> Iterator[dict]:
        for wanted in self.sampler.upcoming():
            yield make_batch(self.dataset, self.collate, wanted)

    def _made_by_workers(self) -> Iterator[dict]:
        workers = [_Worker(number, self.dataset, self.collate) for number in range(self.num_workers)]
        pending: deque = deque()
        try:
            for number, wanted in enumerate(self.sampler.upcoming()):
                worker = workers[number % len(workers)]
                worker.ask(wanted)
                pending.append(worker)
                if len(pending) == self.prefetch * len(workers):
                    yield pending.popleft().answer()
        finally:
            for worker in workers:
                worker.stop()


def make_batch(dataset, collate: Callable, wanted: Batch) -> dict:
    """Reads the samples of a batch; the same in every process."""
    items = [dataset.item(index, np.random.default_rng(seed)) for index, seed in zip(wanted.indices, wanted.seeds)]
    return {**collate(items), "positions": wanted.positions}


class _Worker:
    """The parent's end of a worker."""

    def __init__(self, number: int, dataset, collate: Callable):
        self.number = number
        self.pipe, far_end = Pipe()
        command = "import sys; from opensora.datasets.loader import work; work(int(sys.argv[1]))"
        self.process = subprocess.Popen(
            [sys.executable, "-c", command, str(far_end.fileno())], pass_fds=[far_end.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **SINGLE_THREADED, "PYTHONPATH": os.pathsep.join(path or "." for path in sys.path)})
        far_end.close()
        self.stop = weakref.finalize(self, _stop, self.process, self.pipe)  # also when the program ends
        self._send((dataset, collate))

    def ask(self, wanted: Batch) -> None:
        self._send(wanted)

    def answer(self) -> dict:
        try:
            answer = _receive(self.pipe)
        except (EOFError, OSError) as error:
            raise self._ended() from error
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _send(self, message) -> None:
        try:
            self.pipe.send(message)
        except OSError as error:
            raise self._ended() from error

    def _ended(self) -> ValueError:
        code = self.process.wait()
        reason = {-signal.SIGKILL: "killed: out of memory?"}.get(code, f"exit code {code}")
        return ValueError(f"data worker {self.number} of this process ended ({reason})")


def _stop(process: subprocess.Popen, pipe: Connection) -> None:
    pipe.close()
    process.kill()
    process.wait()


def work(descriptor: int) -> None:
    """The life of a worker: makes the batches it is asked for over the pipe of this file descriptor."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    pipe = Connection(descriptor)
    try:
        dataset, collate = pipe.recv()
        while True:
            wanted = pipe.recv()
            try:
                answer = make_batch(dataset, collate, wanted)
            except (ValueError, OSError) as error:
                answer = ValueError(str(error))
            _send_shared(pipe, answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the parent is gone or needs no more


def _send_shared(pipe: Connection, message) -> None:
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
                memory[start:start + size] = view
        reduction.send_handle(pipe, file.fileno(), None)


def _receive(pipe: Connection):
    """The message that `_send_shared` sent. Its arrays lie in shared memory, which is freed with the last of them."""
    skeleton, spans = pipe.recv()
    if not spans:
        return pickle.loads(skeleton)
    descriptor = reduction.recv_handle(pipe)
    try:
        memory = memoryview(mmap.mmap(descriptor, 0))
    finally:
        os.close(descriptor)
    return pickle.loads(skeleton, buffers=[memory[start:start + size] for start, size in spans])


def _anonymous_file():
    """A file without a name: memory on Linux, elsewhere a temporary file."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("batch"), "r+b")
    return tempfile.TemporaryFile()
