"""Reads randomly damaged files: every reader must either read a file or reject it with a one-line error.

    python tests/helpers/file_fuzzing.py --files 20000 [--readers safetensors,config.json] [--seed 0]

Small valid files are damaged at random (flipped bits, bytes removed, moved and repeated, numbers set to extremes) and
read in separate processes with limits on memory and time. The readers are those of `file_readers.READERS`.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, Optional

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from file_readers import READERS  # noqa: E402

SECONDS = 5.0  # time limit per file
MEGABYTES = 200  # memory limit per file, in addition to what the process uses
EXTREMES = [
    value.to_bytes(width, order)
    for width in (1, 2, 4, 8)
    for order in ("little", "big")
    for value in (0, 1, (1 << 8 * width) - 1, 1 << 8 * width - 1, (1 << 8 * width - 1) - 1)
]
TEXTS = [
    b"NaN",
    b"-1",
    b"1e999",
    b"null",
    b"true",
    b"9" * 40,
    b"[" * 3000,
    b'{"a":' * 3000,
    b"\xff",
    b"\xef\xbb\xbf",
    b'"',
    b",",
    b"\x00",
    b"\\ud800",
]


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """Applies one to three random changes; in half of the cases a single small one."""
    content = bytearray(data)
    is_small = rng.random() < 0.5
    for _ in range(1 if is_small else rng.integers(1, 4)):
        at = int(rng.integers(0, len(content) + 1)) if content else 0
        length = int(rng.integers(1, 1 + max(1, len(content) // int(rng.choice([2, 10, 100])))))
        piece = content[at : at + length]
        kind = rng.choice([0, 5, 6]) if is_small else rng.integers(8)
        if kind == 0 and content:
            content[min(at, len(content) - 1)] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del content[at:]
        elif kind == 2:
            del content[at : at + length]
        elif kind == 3:
            content[at:at] = piece * int(rng.integers(1, 4))
        elif kind == 4:
            to = int(rng.integers(0, len(content) + 1))
            content[to : to + length] = piece
        elif kind == 5:
            value = EXTREMES[rng.integers(len(EXTREMES))]
            content[at : at + len(value)] = value
        elif kind == 6:
            value = TEXTS[rng.integers(len(TEXTS))]
            content[at : at + int(rng.integers(2)) * len(value)] = value
        else:
            content[at : at + length] = rng.bytes(length)
    return bytes(content)


def outcome(read: Callable[[Path], object], path: Path) -> tuple[str, Optional[str]]:
    """("read" or "rejected", None), or (kind of fault, details)."""
    try:
        read(path)
    except (ValueError, OSError) as error:
        message = " ".join(str(error).split())  # as run_main prints it
        if len(message) > 2000:
            return "long message", message[:300]
        names = [place.name for place in (path, *path.parents[:2])]
        return ("rejected", None) if any(name in message for name in names) else ("no name", message)
    except BaseException as error:
        return "other exception", f"{type(error).__name__}: {error!s:.300}"
    return "read", None


def _work(read: Callable[[Path], object], path: Path, data: bytes, seeds: range, results) -> None:
    """Main function of a process: reads the damaged files of `seeds`; sends (seed, outcome, detail) after each."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (MEGABYTES << 20),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.stderr = sys.stdout = open(os.devnull, "w")
    for seed in seeds:
        path.write_bytes(damage(data, np.random.default_rng(seed)))
        results.send((seed, *outcome(read, path)))


def run_reader(name: str, seeds: range) -> Iterator[tuple[int, str, Optional[str], float]]:
    """Yields (seed, outcome, detail, seconds) for each damaged file, including crashes and timeouts."""
    make, read = READERS[name]
    with tempfile.TemporaryDirectory(prefix="damaged-") as folder:
        path = make(Path(folder))
        data = path.read_bytes()
        read(path)  # the intact file is readable; this also imports all modules before processes are forked
        while seeds:
            for result in _run_until_fault(read, path, data, seeds):
                yield result
                seeds = seeds[1:]


def _run_until_fault(read: Callable[[Path], object], path: Path, data: bytes, seeds: range) -> Iterator[tuple]:
    """The results of one process, until it has read all files, crashes or exceeds the time limit."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(read, path, data, seeds, sender), daemon=True)
    process.start()
    sender.close()
    try:
        for seed in seeds:
            start = time.perf_counter()
            if not receiver.poll(SECONDS):
                yield seed, "too slow", None, SECONDS
                return
            try:
                yield (*receiver.recv(), time.perf_counter() - start)
            except EOFError:
                process.join()
                yield seed, "crash", f"exit status {process.exitcode}", time.perf_counter() - start
                return
    finally:
        process.kill()
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Reads damaged files; reports how many were read, rejected or caused a fault."
    )
    parser.add_argument("--files", type=int, default=20_000, help="total number of files")
    parser.add_argument("--readers", default=",".join(READERS), help="comma-separated names")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    names = args.readers.split(",")
    count, faults = args.files // len(names), 0
    for name in names:
        tally, slowest, start = {}, 0.0, time.perf_counter()
        for seed, result, detail, seconds in run_reader(name, range(args.seed, args.seed + count)):
            tally[result] = tally.get(result, 0) + 1
            slowest = max(slowest, seconds if sum(tally.values()) > 1 else 0.0)
            if result not in ("read", "rejected"):
                faults += 1
                print(f"FAULT {name}, seed {seed}: {result}: {detail}", flush=True)
        counts = ", ".join(f"{number} {result}" for result, number in tally.items())
        print(f"{name}: {counts}; slowest {slowest:.2f} s, all {time.perf_counter() - start:.0f} s", flush=True)
    sys.exit(faults > 0)


if __name__ == "__main__":
    main()
