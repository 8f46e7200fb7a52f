"""Minimal datasets and a tokenizer, in a module that data workers can import."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
import time
from pathlib import Path

import numpy as np

from opensora.datasets.broken import Quarantine, read_or_replace
from opensora.datasets.t2v.probing import Media


class LettersTokenizer:
    """One token per character: its code point."""

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
    """Samples that record which process made them."""

    def item(self, index: int, rng: np.random.Generator) -> dict:
        return {"process": np.array(os.getpid()), "mindspore": np.array("mindspore" in sys.modules)}


class Slow(WhereItRuns):
    """The third sample takes a while."""

    def item(self, index: int, rng: np.random.Generator) -> dict:
        if index == 2:
            time.sleep(1)
        return super().item(index, rng)


class Faulty:
    """Six samples; reading sample 3 causes `fault`. `folder` contains the list of broken samples."""

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
    """Not an Exception, as some compiled extensions raise."""


def hang_with_gil() -> None:
    """Hangs while it holds the GIL, as a decoder may."""
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
    "longer than": lambda self: hang_with_gil(),
    "error: unpack": lambda self: struct.unpack("<I", b""),
    "TypeError": lambda self: len(None),
    "RecursionError": lambda self: throw(RecursionError("too deep")),
    "MemoryError": lambda self: throw(MemoryError()),
    "SystemExit": lambda self: sys.exit(3),
    "NoException": lambda self: throw(NoException("panicked")),
}


class Crashing(WhereItRuns):
    """The third sample crashes and has no replacement."""

    def item(self, index: int, rng: np.random.Generator) -> dict:
        if index == 2:
            ctypes.string_at(0)
        return super().item(index, rng)


class Stuck(WhereItRuns):
    """Prints the process id and hangs while it holds the GIL."""

    def item(self, index: int, rng: np.random.Generator) -> dict:
        print(os.getpid(), flush=True)
        hang_with_gil()
        return {}


def measure_or_crash(path: str) -> Media:
    """Reads no file; the name "b" crashes the decoder."""
    return ctypes.string_at(0) if path == "b" else Media(64, 96, 24.0, 33)
