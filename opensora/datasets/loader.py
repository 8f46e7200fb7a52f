"""Batches made ahead of time by data workers, see `opensora.datasets.worker`."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Callable

from opensora.datasets.collate import stack
from opensora.datasets.sampler import Sampler
from opensora.datasets.worker import Worker, make_batch
from opensora.errors import UserError


class Loader:
    """The batches of a sampler, in its order; the sampler advances as they are handed out.

    A sample that crashes or hangs a data worker is treated as any other that cannot be read: the worker is replaced,
    the sample is listed as broken and another one takes its place. Without data workers the crash of a decoder is
    that of this process, and one that hangs without releasing Python's lock hangs it.

    Args:
        dataset: an object with `item(index, rng) -> dict of arrays`, with indices of the sampler; it is pickled to
            the workers.
        sampler: says what to read; its state is that of the batches handed out, not of those made ahead.
        collate: items -> batch, a dict of arrays, None and numbers; it is pickled, too.
        num_workers: processes that read; 0 reads in this one, when a batch is asked for. Only processes protect the
            run from decoders that crash or hang.
        prefetch: batches ahead per worker.

    Each batch has `positions` besides what `collate` gives: (B,), the samples' places among all of the step.

    Attributes:
        wait_seconds, batches: how long the consumer has waited in all, and for how many batches.
        replaced: samples that were broken and others stood for.
    """

    def __init__(
        self,
        dataset,
        sampler: Sampler,
        collate: Callable[[Sequence[dict]], dict] = stack,
        num_workers: int = 0,
        prefetch: int = 2,
    ):
        if num_workers < 0 or prefetch < 1:
            raise UserError(f"num_workers {num_workers}, prefetch {prefetch}: should be at least 0 and 1")
        self.dataset, self.sampler, self.collate = dataset, sampler, collate
        self.num_workers, self.prefetch = num_workers, prefetch
        self.wait_seconds, self.batches, self.replaced = 0.0, 0, 0

    def __iter__(self) -> Iterator[dict]:
        """Starts the workers; they end with the iterator.

        Raises:
            UserError: a batch could not be made, or workers keep ending.
        """
        made = self._made_by_workers() if self.num_workers else self._made_here()
        while True:
            start = time.perf_counter()
            batch = next(made, None)
            if batch is None:  # a sampler with an end
                return
            self.wait_seconds += time.perf_counter() - start
            self.batches += 1
            self.replaced += batch.get("replaced", 0)
            self.sampler.advance()
            yield batch

    def _made_here(self) -> Iterator[dict]:
        for wanted in self.sampler.upcoming():
            yield make_batch(self.dataset, self.collate, wanted)

    def _made_by_workers(self) -> Iterator[dict]:
        lost: dict[str, str] = {}
        workers = [Worker(number, self.dataset, self.collate, lost) for number in range(self.num_workers)]
        pending: deque[Worker] = deque()
        try:
            for number, wanted in enumerate(self.sampler.upcoming()):
                worker = workers[number % len(workers)]
                worker.ask(wanted)
                pending.append(worker)
                if len(pending) == self.prefetch * len(workers):
                    yield pending.popleft().answer()
            while pending:
                yield pending.popleft().answer()
        finally:
            for worker in workers:
                worker.stop()
