"""Unreadable samples: detected in bounded time, replaced by other samples, and recorded for the next run.

Decoders are third-party code. On a corrupt file they may raise any exception, crash the process or never return. All
reads go through `try_read`, which turns these failures into an error message. In a data worker the parent process
handles crashes and hangs, see `opensora.datasets.loader`. Any other process handles only exceptions and most hangs.
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

READ_TIMEOUT = 60.0  # seconds; a sample that takes longer counts as broken
MAX_REASON_LENGTH = 500  # characters
MAX_ATTEMPTS = 10  # samples tried for one position of a batch

Result = TypeVar("Result")


class ReadTimeout(OSError):
    """Reading a sample exceeds its time limit."""

    def __init__(self, seconds: float):
        super().__init__(f"reading takes longer than {seconds:g} s")


class Quarantine:
    """The broken samples that earlier runs found: a text file with a line `name<TAB>reason` for each.

    To have a sample tried again, delete its line. All processes append to the same file. Each line is a single write,
    so lines are never interleaved. Additions take effect in the next run: within a run, the data must not depend on
    which process read which sample.
    """

    def __init__(self, path: Union[str, Path]):
        self.path = Path(path).resolve()
        self.names = self._read_names()
        self._added: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return printable(name) in self.names

    def add(self, name: str, reason: str) -> None:
        """Appends the sample. If the file cannot be written, prints a warning once and the run continues."""
        name = printable(name)
        if name in self._added or name in self._read_names():  # another process may have added it
            return
        self._added.add(name)
        line = f"{name}\t{printable(' '.join(reason.split()))[:MAX_REASON_LENGTH]}\n".encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "ab", buffering=0) as file:  # O_APPEND
                file.write(line)
        except OSError as error:
            logger.warning(f"{name} is broken ({reason}) and could not be listed: {error}")

    def _read_names(self) -> set[str]:
        if not self.path.is_file():
            return set()
        lines = self.path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
        return {printable(line.split("\t")[0]) for line in lines if line.strip()}


def printable(text: str) -> str:
    """`text` on one line, safe for any terminal and file: control characters and lone surrogates are escaped."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class ReadMonitor:
    """Supervises the reads of this process. Data workers use a subclass that reports to the parent.

    Attributes:
        fatal: name -> reason, for samples that crashed or hung a data worker in this run.
    """

    fatal: Mapping[str, str] = {}

    def begin(self, name: str) -> None:
        """Called before the sample `name` is read."""

    def run(self, name: str, work: Callable[[], Result]) -> Result:
        """Runs `work`, which reads the sample `name`, and returns its result.

        Raises:
            ReadTimeout: after `READ_TIMEOUT` seconds.
        """
        return run_with_timeout(work, READ_TIMEOUT)


monitor = ReadMonitor()


def try_read(name: str, work: Callable[[], Result]) -> tuple[Optional[Result], Optional[str]]:
    """Runs `work`, which reads the sample `name`: (result, None), or (None, reason) if the sample is broken.

    Every exception counts as broken: on corrupt files, readers raise struct.error, TypeError and even exceptions that
    do not derive from Exception. A sample that has crashed or hung a data worker is broken, too.
    """
    if name in monitor.fatal:
        return None, monitor.fatal[name]
    try:
        return monitor.run(name, partial(_catch, work))
    except ReadTimeout as error:
        return None, str(error)


def _catch(work: Callable[[], Result]) -> tuple[Optional[Result], Optional[str]]:
    try:
        return work(), None
    except (ValueError, OSError) as error:
        return None, str(error) or type(error).__name__
    except BaseException as error:  # never a KeyboardInterrupt: this runs in a thread or a data worker
        return None, f"{type(error).__name__}: {error}"


def read_or_replace(
    read: Callable[[int, np.random.Generator], dict],
    name_of: Callable[[int], str],
    index: int,
    candidates: Callable[[], Union[Sequence[int], np.ndarray]],
    rng: np.random.Generator,
    quarantine: Quarantine,
) -> dict:
    """Reads the sample `index`, or a random one of `candidates` if it is broken.

    Samples that are already in quarantine consume the same random numbers as samples that turn out to be broken now.
    So a resumed run gets the same data. Samples enter quarantine only after another sample was read successfully: if
    none can be read, the cause is elsewhere, such as an unmounted disk.

    Args:
        read: (index, generator) -> sample. Each call gets a new generator.
        name_of: index -> the name in the quarantine file.

    Returns:
        The sample with the additional entry `replaced`: 1 if it is a replacement, else 0.

    Raises:
        UserError: `MAX_ATTEMPTS` samples were broken.
    """
    reasons: dict[str, str] = {}
    for attempt in range(MAX_ATTEMPTS):
        if attempt:
            choices = candidates()
            index = int(choices[rng.integers(len(choices))])
        sample_rng = np.random.default_rng(rng.integers(1 << 63))
        name = name_of(index)
        if name in quarantine or name in reasons:
            continue
        sample, reason = try_read(name, partial(read, index, sample_rng))
        if sample is None:
            reasons[name] = str(reason)
            continue
        for broken_name, reason in reasons.items():
            quarantine.add(broken_name, reason)
        return {**sample, "replaced": int(attempt > 0)}
    last = list(reasons.values())[-1] if reasons else f"{name} is listed in {quarantine.path}"
    raise UserError(printable(f"none of {MAX_ATTEMPTS} samples of one shape could be read. The last: {last}"))


def run_with_timeout(work: Callable[[], Result], seconds: float) -> Result:
    """Runs `work` in a thread and returns its result.

    A thread cannot be interrupted, so late work is abandoned in its thread. Work that hangs while it holds the GIL
    blocks the whole process; only a data worker protects against that.

    Raises:
        ReadTimeout: `work` takes longer than `seconds`.
    """
    outcome: list[tuple[Any, Optional[BaseException]]] = []

    def run() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:  # raised again in the waiting thread
            outcome.append((None, error))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise ReadTimeout(seconds)
    result, error = outcome[0]
    if error is not None:
        raise error
    return result
