"""Samples that cannot be read: found out in bounded time, replaced by another, remembered for the next run.

Decoders are third-party code: on a damaged file they may raise anything, crash the process or never return. All
reading goes through `attempt`, which turns these into a reason. In a data worker, crashes and hangs are handled by the
parent process, see `opensora.datasets.loader`; in any other process only exceptions and most hangs can be.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar, Union

import numpy as np

from opensora.errors import UserError
from opensora.utils.logs import logger

SECONDS = 60.0  # a sample that takes longer to read counts as broken
LONGEST_REASON = 500  # letters
TRIES = 10  # samples looked at for one place in a batch

Result = TypeVar("Result")


class TooLate(OSError):
    """Reading a sample takes longer than it may."""

    def __init__(self, seconds: float):
        super().__init__(f"reading takes longer than {seconds:g} s")


class Quarantine:
    """The broken samples that earlier runs found, one `name<TAB>reason` a line of a text file.

    Delete a line to try a sample again. All processes append to the same file, each line in one write, so lines stay
    whole. What is added counts from the next run on: within a run the data must not depend on which process read what.
    """

    def __init__(self, path: Union[str, Path]):
        self.path = Path(path).resolve()
        self.names = self._listed()
        self._added: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return printable(name) in self.names

    def add(self, name: str, reason: str) -> None:
        """Appends the sample; a file that cannot be written is reported once and does not stop the run."""
        name = printable(name)
        if name in self._added or name in self._listed():  # maybe by another process
            return
        self._added.add(name)
        line = f"{name}\t{printable(' '.join(reason.split()))[:LONGEST_REASON]}\n".encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab", buffering=0) as file:  # O_APPEND
                file.write(line)
        except OSError as error:
            logger.warning(f"{name} is broken ({reason}) and could not be listed: {error}")

    def _listed(self) -> set[str]:
        if not self.path.is_file():
            return set()
        lines = self.path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
        return {printable(line.split("\t")[0]) for line in lines if line.strip()}


def printable(text: str) -> str:
    """`text` on one line that any terminal and file takes: control characters and lone surrogates are escaped."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class Watch:
    """What this process knows about reading samples; a data worker has another one, see `attempt`.

    Attributes:
        lost: name -> reason, of the samples that crashed or hung a data worker of this run.
    """

    lost: Mapping[str, str] = {}

    def begin(self, name: str) -> None:
        """The sample `name` is read from now on."""

    def run(self, name: str, work: Callable[[], Result]) -> Result:
        """The result of `work`, which reads the sample `name`. Raises TooLate after `SECONDS`."""
        return in_time(work, SECONDS)


watch = Watch()


def attempt(name: str, work: Callable[[], Result]) -> tuple[Optional[Result], Optional[str]]:
    """(the result of `work`, None), or (None, the reason) if the sample `name` cannot be read.

    Any exception is a reason: readers of damaged files raise struct.error, TypeError, even exceptions that do not
    derive from Exception. So is having crashed or hung a data worker before.
    """
    if name in watch.lost:
        return None, watch.lost[name]
    try:
        return watch.run(name, partial(_caught, work))
    except TooLate as error:
        return None, str(error)


def _caught(work: Callable[[], Result]) -> tuple[Optional[Result], Optional[str]]:
    try:
        return work(), None
    except (ValueError, OSError) as error:
        return None, str(error) or type(error).__name__
    except BaseException as error:  # runs where no KeyboardInterrupt arrives: in a thread or a data worker
        return None, f"{type(error).__name__}: {error}"


def read_or_replace(
    read: Callable[[int, np.random.Generator], dict],
    name_of: Callable[[int], str],
    index: int,
    others: Callable[[], Sequence[int]],
    rng: np.random.Generator,
    quarantine: Quarantine,
) -> dict:
    """The sample `index`, or one drawn from `others` if it is broken; `replaced` in it is 1 in the latter case, else 0.

    `read` gets a generator of its own. Known and newly found broken samples lead to the same draws, so a run gives
    the same data after it was resumed. Samples are put into quarantine once another could be read: where none can,
    the fault lies elsewhere, say in a disk that is not there.

    Raises:
        UserError: `TRIES` samples were broken.
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
        sample, reason = attempt(name, partial(read, index, own_rng))
        if reason is not None:
            reasons[name] = reason
            continue
        for broken, reason in reasons.items():
            quarantine.add(broken, reason)
        return {**sample, "replaced": int(tried > 0)}
    last = list(reasons.values())[-1] if reasons else f"{name} is listed in {quarantine.path}"
    raise UserError(printable(f"none of {TRIES} samples of one shape could be read. The last: {last}"))


def in_time(work: Callable[[], Result], seconds: float) -> Result:
    """The result of `work`, which gets `seconds`.

    A thread cannot be interrupted: work that is late is left to itself in its thread. Work that is stuck without
    releasing Python's lock stops the whole process; only a data worker protects from that.

    Raises:
        TooLate: it takes longer.
    """
    outcome: list[tuple[Any, Optional[BaseException]]] = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:  # raised again below, in the thread that waits
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TooLate(seconds)
    result, error = outcome[0]
    if error is not None:
        raise error
    return result
