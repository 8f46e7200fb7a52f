"""Reads many files in data workers, so that a decoder that crashes or hangs costs only one file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Callable, Generic, TypeVar, Union

import numpy as np

from opensora.datasets import broken
from opensora.datasets.loader import Loader
from opensora.datasets.sampler import BatchRequest, Sampler

MAX_WORKERS = 8
BATCH_SIZE = 8  # small files; a message to a worker for each would take longer than the reading

Result = TypeVar("Result")


def read_files(
    paths: Sequence[str], read: Callable[[str], Result], batch_size: int = BATCH_SIZE
) -> Iterator[tuple[str, Union[Result, str]]]:
    """Yields each path, in order, with the result of `read`, or with the reason why it failed, which is a text.

    Args:
        read: a function of a module or a `partial` of one, which is pickled; it returns neither None nor a text. If
            a file takes longer than `broken.READ_TIMEOUT`, it calls `broken.monitor.begin(path)` as it progresses.
        batch_size: files that a worker reads for one request.
    """
    workers = min(MAX_WORKERS, os.cpu_count() or 1, -(-len(paths) // batch_size))  # short lists use fewer
    for batch in Loader(_Files(paths, read), _InOrder(len(paths), batch_size), _collate, workers) if paths else ():
        for place, result in zip(batch["positions"], batch["results"]):
            yield paths[place], result


class _Files(Generic[Result]):
    """A dataset of files; an item is the result of `read`, or the reason why it failed."""

    def __init__(self, paths: Sequence[str], read: Callable[[str], Result]):
        self.paths, self.read = list(paths), read

    def item(self, index: int, rng: np.random.Generator) -> Union[Result, str]:
        result, reason = broken.try_read(self.paths[index], partial(self.read, self.paths[index]))
        return str(reason) if result is None else result


def _collate(items: Sequence) -> dict:
    return {"results": list(items)}


class _InOrder(Sampler):
    """Yields every file once, in order."""

    def __init__(self, count: int, batch_size: int):
        self.count, self.batch_size = count, batch_size

    def upcoming(self) -> Iterator[BatchRequest]:
        for first in range(0, self.count, self.batch_size):
            places = np.arange(first, min(first + self.batch_size, self.count))
            yield BatchRequest(places, places, places.tolist())

    def advance(self) -> None:
        pass
