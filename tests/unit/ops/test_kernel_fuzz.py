"""Every C++ kernel compared with naive references on random shapes, built for this CPU and for x86-64-v3."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kernel_fuzz
import pytest
from processes import ROOT

from opensora.ops.cpu import build
from opensora.ops.cpu.custom_op import ONEDNN

pytestmark = pytest.mark.skipif(build.library() is None, reason="no kernels here: no g++, or switched off")


@pytest.mark.parametrize("march", ["native", "x86-64-v3"])
@pytest.mark.parametrize("cases", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_kernels_compute_what_naive_references_do(cases, march, monkeypatch):
    monkeypatch.setenv(build.MARCH, march)
    try:
        path = build.build_kernels().path
    except ValueError as error:
        pytest.skip(str(error))
    wrong = kernel_fuzz.fuzz(kernel_fuzz.Library(str(path), str(ONEDNN)), kernel_fuzz.OPERATORS, range(cases))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("threads", [1, 3, 16])
def test_work_divided_among_threads(threads):
    library = kernel_fuzz.Library(str(build.build_kernels().path), str(ONEDNN))
    wrong = kernel_fuzz.fuzz(library, kernel_fuzz.LARGE_OPERATORS, range(12), [threads])
    assert not wrong, "\n".join(wrong)


def test_out_of_memory_is_a_status():
    """An exception inside a parallel region would end the process."""
    code = f"""
import resource
import numpy as np
from kernel_fuzz import OUT_OF_MEMORY, Library

library = Library({str(build.build_kernels().path)!r}, {str(ONEDNN)!r})
library.set_threads(2)

def convolve(size):
    shapes = (1, 4, 64, size, size), (64, 64, 1, 3, 3), (64,)
    settings = np.array([1, 1, 1, 1, 0, 1], np.float32)
    arrays = [*(np.ones(shape, np.float32) for shape in shapes), settings, np.ones(shapes[0], np.float32)]
    return lambda: library.run("conv3d", arrays)

small, large = convolve(8), convolve(96)
assert small() == 0  # starts the threads
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used, resource.RLIM_INFINITY))
assert large() == OUT_OF_MEMORY
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert large() == 0
"""
    tests = Path(kernel_fuzz.__file__).parent
    finished = subprocess.run([sys.executable, "-c", code], cwd=tests, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


def test_kernels_and_models_on_a_smaller_cpu(run):
    """With AVX2 only, on a CPU with AVX-512."""
    if "__AVX512F__" not in build._features("g++", "native"):
        pytest.skip("this CPU has no AVX-512")
    finished = run(
        "-m",
        "pytest",
        "-q",
        "tests/unit/ops/test_cpu_kernels.py",
        "tests/unit/models/test_wfvae.py",
        "tests/unit/models/test_dit.py",
        "tests/unit/models/test_text_encoder.py",
        "-k",
        "kernels_compute or (golden or gradients_of_a_batch) and not graph and not official and not 2b_width",
        env={**os.environ, build.MARCH: "x86-64-v3"},
    )
    assert finished.returncode == 0 and " passed" in finished.stdout, finished.stdout[-5000:]


@pytest.mark.slow
def test_kernels_stay_within_their_arrays(tmp_path):
    """AddressSanitizer ends the process at the first access out of bounds."""
    sanitizer = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True).stdout.strip()
    if not Path(sanitizer).is_absolute():
        pytest.skip("g++ has no AddressSanitizer here")
    subprocess.run(
        [
            "g++",
            "-march=native",
            *build.FLAGS,
            "-O1",
            "-g",
            "-fsanitize=address",
            *build.SOURCE.glob("*.cc"),
            "-o",
            tmp_path / "asan.so",
            "-ldl",
        ],
        check=True,
    )
    finished = subprocess.run(
        [sys.executable, "tests/helpers/kernel_fuzz.py", tmp_path / "asan.so", ONEDNN, "--cases", "300", "--no-guards"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "LD_PRELOAD": sanitizer, "ASAN_OPTIONS": "detect_leaks=0"},
    )
    assert finished.returncode == 0, (finished.stdout + finished.stderr)[:5000]
