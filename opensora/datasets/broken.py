"""Samples that cannot be read: found out in bounded time, replaced by another, remembered for the next run."""
from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Callable, Sequence, TypeVar, Union

import numpy as np

SECONDS = 60.0  # a sample that takes longer to read counts as broken
TRIES = 10  # samples looked at for one place in a batch

Result = TypeVar("Result")


class Quarantine:
    """The broken samples that earlier runs found, one `name<TAB>reason` a line of a text file.

    Delete a line to try a sample again. All processes append to the same file, each line in one write, so lines stay
    whole. What is added counts from the next run on: within a run the data must not depend on which process read what.
    """

    def __init__(self, path: Union[str, Path]):
        self.path = Path(path).resolve()
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        self.names = {line.split("\t")[0] for line in lines if line}
        self._added: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def add(self, name: str, reason: str) -> None:
        if name in self._added:
            return
        self._added.add(name)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = f"{name}\t{' '.join(reason.split())}\n".encode()
        with open(self.path, "ab", buffering=0) as file:  # O_APPEND
            file.write(line)


def read_or_replace(read: Callable[[int, np.random.Generator], dict], name_of: Callable[[int], str], index: int,
                    others: Callable[[], Sequence[int]], rng: np.random.Generator, quarantine: Quarantine) -> dict:
    """The sample `index`, or one drawn from `others` if it is broken; `replaced` in it is 1 in the latter case, else 0.

    `read` gets a generator of its own. Known and newly found broken samples lead to the same draws, so a run gives
    the same data after it was resumed. Samples are put into quarantine once another could be read: where none can,
    the fault lies elsewhere, say in a disk that is not there.

    Raises:
        ValueError: `TRIES` samples were broken.
    """
    reasons: dict[str, str] = {}
    for tried in range(TRIES):
        if tried:
            candidates = others()
            index = int(candidates[rng.integers(len(candidates))])
        own_rng = np.random.default_rng(rng.integers(1 << 63))
        name = name_of(index)
        if name in quarantine or name in reasons:
            continue
        try:
            sample = in_time(partial(read, index, own_rng), SECONDS)
        except (ValueError, OSError) as error:
            reasons[name] = str(error)
            continue
        for broken, reason in reasons.items():
            quarantine.add(broken, reason)
        return {**sample, "replaced": int(tried > 0)}
    last = list(reasons.values())[-1] if reasons else f"{name} is listed in {quarantine.path}"
    raise ValueError(f"none of {TRIES} samples of one shape could be read. The last: {last}")


def in_time(work: Callable[[], Result], seconds: float) -> Result:
    """The result of `work`, which gets `seconds`.

    Libraries that read media cannot be interrupted: work that is late is left to itself in its thread.

    Raises:
        OSError: it takes longer.
    """
    outcome: list = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:  # raised again below, in the thread that waits
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise OSError(f"reading takes longer than {seconds:g} s")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result
