"""Batches, prefetched by data workers; see `opensora.datasets.worker`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from opensora.datasets.collate import stack
from opensora.datasets.sampler import Sampler
from opensora.datasets.worker import Collate, Dataset, Worker, make_batch
from opensora.errors import UserError


class Loader:
    """Iterates over the batches that a sampler lists, in its order. The sampler advances as batches are yielded.

    A sample that crashes or hangs a data worker is treated like any other unreadable sample: the worker is restarted,
    the sample is listed as broken, and another sample replaces it. Without data workers, a decoder that crashes ends
    this process, and one that hangs while it holds the GIL blocks it.

    Args:
        dataset: an object with `item(index, rng) -> dict of arrays`; `index` is what the sampler yields. It is pickled
            and sent to the workers.
        sampler: lists what to read. Its state covers the batches yielded, not those prefetched.
        collate: items -> batch, a dict of arrays, None and numbers; it is pickled, too.
        num_workers: worker processes; 0 reads in this process, when a batch is requested. Only worker processes
            protect the run against decoders that crash or hang.
        prefetch: batches to read ahead per worker.

    In addition to the result of `collate`, each batch has `positions`, (B,): the samples' positions among those of all
    processes in this step.

    Attributes:
        wait_seconds, batches: total time the consumer has waited, and the number of batches it has received.
        replaced: broken samples that were replaced by others.
    """

    def __init__(
        self, dataset: Dataset, sampler: Sampler, collate: Collate = stack, num_workers: int = 0, prefetch: int = 2
    ):
        if num_workers < 0 or prefetch < 1:
            raise UserError(f"num_workers {num_workers}, prefetch {prefetch}: should be at least 0 and 1")
        self.dataset: Any = dataset  # users of the loader access attributes of their own dataset class
        self.sampler, self.collate = sampler, collate
        self.num_workers, self.prefetch = num_workers, prefetch
        self.wait_seconds, self.batches, self.replaced = 0.0, 0, 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Starts the workers; they end with the iterator.

        Raises:
            UserError: a batch cannot be made, or workers keep dying.
        """
        batches = self._read_with_workers() if self.num_workers else self._read_here()
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is None:  # a finite sampler
                return
            self.wait_seconds += time.perf_counter() - start
            self.batches += 1
            self.replaced += batch.get("replaced", 0)
            self.sampler.advance()
            yield batch

    def _read_here(self) -> Iterator[dict[str, Any]]:
        for request in self.sampler.upcoming():
            yield make_batch(self.dataset, self.collate, request)

    def _read_with_workers(self) -> Iterator[dict[str, Any]]:
        fatal: dict[str, str] = {}
        workers = [Worker(number, self.dataset, self.collate, fatal) for number in range(self.num_workers)]
        pending: deque[Worker] = deque()
        try:
            for number, request in enumerate(self.sampler.upcoming()):
                worker = workers[number % len(workers)]
                worker.submit(request)
                pending.append(worker)
                if len(pending) == self.prefetch * len(workers):
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for worker in workers:
                worker.stop()
