"""Datasets and a tokenizer small enough to look through, in a module that data workers can import."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
import time
from pathlib import Path

import numpy as np

from opensora.datasets.broken import Quarantine, attempt, read_or_replace
from opensora.datasets.t2v.probing import Media


class LettersTokenizer:
    """A token a letter: its code."""

    knows_chinese = True

    def __call__(self, texts: list, max_length: int) -> tuple:
        ids = np.zeros((len(texts), max_length), np.int32)
        for row, text in zip(ids, texts):
            codes = [ord(letter) for letter in text[:max_length]]
            row[: len(codes)] = codes
        return ids, (ids > 0).astype(np.int32)

    @staticmethod
    def text(ids: np.ndarray) -> str:
        return "".join(chr(code) for code in ids.ravel() if code)


class WhereItRuns:
    """Samples that say which process made them."""

    def item(self, index: int, rng: np.random.Generator) -> dict:
        return {"process": np.array(os.getpid()), "mindspore": np.array("mindspore" in sys.modules)}


class Slow(WhereItRuns):
    """The third sample takes a while."""

    def item(self, index: int, rng: np.random.Generator) -> dict:
        if index == 2:
            time.sleep(1)
        return super().item(index, rng)


class Faulty:
    """Six samples; `fault` is what reading sample 3 does, and `folder` has the list of broken ones."""

    def __init__(self, folder: Path, fault: str):
        self.quarantine, self.fault, self.folder = Quarantine(folder / "broken.tsv"), fault, folder

    def item(self, index: int, rng: np.random.Generator) -> dict:
        return read_or_replace(
            self._read, lambda number: f"sample-{number}", index, lambda: range(6), rng, self.quarantine
        )

    def _read(self, index: int, rng: np.random.Generator) -> dict:
        if index == 3 or self.fault == "always killed":
            FAULTS[self.fault](self)
        return {"index": np.array(index), "draw": rng.random(2), "process": np.array(os.getpid())}

    def killed_once(self) -> None:
        marker = self.folder / "killed"
        if not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class NoException(BaseException):
    """As compiled extensions raise."""


def hold_the_lock() -> None:
    """Hangs with Python's lock held, as a decoder of a careless library."""
    ctypes.PyDLL(None).sleep(1000)


def throw(error: BaseException) -> None:
    raise error


FAULTS = {
    "SIGSEGV": lambda self: ctypes.string_at(0),
    "SIGBUS": lambda self: os.kill(os.getpid(), signal.SIGBUS),
    "SIGABRT": lambda self: os.abort(),
    "exit code 7": lambda self: os._exit(7),
    "killed": lambda self: os.kill(os.getpid(), signal.SIGKILL),
    "always killed": lambda self: os.kill(os.getpid(), signal.SIGKILL),
    "killed once": Faulty.killed_once,
    "longer than": lambda self: hold_the_lock(),
    "error: unpack": lambda self: struct.unpack("<I", b""),
    "TypeError": lambda self: len(None),
    "RecursionError": lambda self: throw(RecursionError("too deep")),
    "MemoryError": lambda self: throw(MemoryError()),
    "SystemExit": lambda self: sys.exit(3),
    "NoException": lambda self: throw(NoException("panicked")),
}


class Crashing(WhereItRuns):
    """Its third sample crashes, and nothing else can take its place."""

    def item(self, index: int, rng: np.random.Generator) -> dict:
        if index == 2:
            ctypes.string_at(0)
        return super().item(index, rng)


class Stuck(WhereItRuns):
    """Prints its process's number and hangs, with Python's lock held."""

    def item(self, index: int, rng: np.random.Generator) -> dict:
        print(os.getpid(), flush=True)
        hold_the_lock()
        return {}


class CrashingFiles:
    """Files as `opensora.datasets.t2v.probing` reads them, the second of which crashes the decoder."""

    def __init__(self, paths: list):
        self.paths = paths

    def item(self, index: int, rng: np.random.Generator):
        def measure() -> Media:
            return ctypes.string_at(0) if index == 1 else Media(64, 96, 24.0, 33)

        found, reason = attempt(self.paths[index], measure)
        return reason if found is None else found
