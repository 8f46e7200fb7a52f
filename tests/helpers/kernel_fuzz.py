"""Random calls of every C++ kernel, compared with naive float64 references, values and gradients.

The kernels are called through ctypes, without MindSpore. So the cases also run with AddressSanitizer:

    g++ -fsanitize=address -g ... opensora/ops/cpu/src/*.cc -o asan.so   # the flags of opensora/ops/cpu/build.py
    LD_PRELOAD=$(g++ -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 \
        python tests/helpers/kernel_fuzz.py asan.so .../mindspore/lib/libdnnl.so.2 --cases 1000 --no-guards
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
from collections.abc import Sequence
from typing import Callable, Optional

import numpy as np
from kernel_calls import Call, Draw
from kernel_cases import LARGE_OPERATORS
from kernel_cases import OPERATORS as FLOAT32_OPERATORS
from stored_linear_cases import stored_linear

OPERATORS = (*FLOAT32_OPERATORS, stored_linear)
THREADS = (1, 2, 3, 16)
GUARD = 64  # elements before and after each array: NaN around inputs, so that a read out of bounds shows in the result
NAN = {"f": np.nan, "u": 0x7FC0, "i": 127}  # by the kind of a numpy type: bfloat16 is held as uint16; int8 has no NaN
SENTINEL = np.float32(12345.678)  # around outputs, so that a write out of bounds shows
TOLERANCE = 2e-5
INVALID_SHAPES, OUT_OF_MEMORY = 1, 2  # common.h


class Library:
    """The kernels of a shared library; `onednn` is the path of oneDNN, whose sgemm they use."""

    def __init__(self, path: str, onednn: str, guards: bool = True):
        ctypes.CDLL(onednn)
        self.library, self.guard = ctypes.CDLL(path), GUARD if guards else 0

    def set_threads(self, count: int) -> int:
        before = self.library.omp_get_max_threads()
        self.library.omp_set_num_threads(count)
        return before

    def check(self, call: Call) -> Optional[str]:
        """Runs the call; returns a description of the error, or None."""
        inputs = [self._guarded(x, NAN[x.dtype.kind]) for x in call.inputs]
        if call.changed or call.expected is None:
            outputs = [self._guarded(np.zeros(1, np.float32), SENTINEL)]
        else:
            outputs = [self._guarded(np.full(y.shape, SENTINEL), SENTINEL) for y in call.expected]
        status = self.run(call.kernel, [view for _, view in inputs + outputs])
        if call.expected is None:
            return None if status == INVALID_SHAPES else f"inputs that do not fit together: status {status}"
        if status:
            return f"status {status}"
        results = inputs[: call.changed] if call.changed else outputs
        for number, ((memory, view), expected) in enumerate(zip(results, call.expected)):
            sentinel = np.float32(np.nan) if call.changed else SENTINEL
            frame = np.concatenate((memory[: self.guard], memory[len(memory) - self.guard :]))
            if not np.array_equal(frame, np.full_like(frame, sentinel), equal_nan=True):
                return f"output {number} is written out of bounds"
            magnitude = call.magnitude if np.shape(call.magnitude) == expected.shape else np.max(call.magnitude)
            scale = max(1.0, np.abs(expected).max()) * np.maximum(1, magnitude)
            difference = (np.abs(view - expected) / scale).max()
            if not difference < TOLERANCE:
                return f"output {number} is off by {difference:.1e}"
        return None

    def run(self, kernel: str, arrays: Sequence[np.ndarray]) -> int:
        """Calls the kernel with inputs, then outputs; returns its status."""
        shapes = [(ctypes.c_int64 * max(1, x.ndim))(*x.shape) for x in arrays]
        return getattr(self.library, kernel)(
            len(arrays),
            (ctypes.c_void_p * len(arrays))(*[x.ctypes.data for x in arrays]),
            (ctypes.c_int * len(arrays))(*[x.ndim for x in arrays]),
            (ctypes.POINTER(ctypes.c_int64) * len(arrays))(*shapes),
            None,
            None,
            None,
        )

    def _guarded(self, x: np.ndarray, guard: float) -> tuple[np.ndarray, np.ndarray]:
        """The memory and, inside it, a copy of x."""
        memory = np.full(x.size + 2 * self.guard, guard, x.dtype)
        view = memory[self.guard : self.guard + x.size].reshape(x.shape)
        view[...] = x
        return memory, view


def fuzz(
    library: Library, operators: Sequence[Callable], seeds: Sequence[int], thread_counts: Sequence[int] = THREADS
) -> list[str]:
    """Runs the cases of these seeds, with the thread counts in turn; returns one line per wrong call."""
    wrong = []
    for seed, operator in itertools.product(seeds, operators):
        threads = thread_counts[seed % len(thread_counts)]
        before = library.set_threads(threads)
        for call in operator(Draw(seed)):
            fault = library.check(call)
            if fault:
                wrong.append(f"seed {seed}, {threads} threads: {call}: {fault}")
        library.set_threads(before)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("onednn")
    parser.add_argument("--cases", type=int, default=100, help="for each operator")
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    parser.add_argument("--only", nargs="*", help="names of operators")
    parser.add_argument("--no-guards", dest="guards", action="store_false", help="allocate no guards around arrays")
    args = parser.parse_args()
    operators = [f for f in OPERATORS + LARGE_OPERATORS if not args.only or f.__name__ in args.only]
    wrong = fuzz(Library(args.library, args.onednn, args.guards), operators, range(args.first, args.first + args.cases))
    print("\n".join([*wrong[:50], f"{args.cases} cases of {len(operators)} operators: {len(wrong)} calls went wrong"]))
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
