"""Every C++ kernel compared with naive references on random shapes, built for this CPU and for x86-64-v3."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kernel_fuzz
import numpy as np
import pytest
import stored_linear_cases
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


@pytest.mark.parametrize("threads", [1, 3])
def test_wide_rows_are_widened_in_panels(threads):
    library = kernel_fuzz.Library(str(build.build_kernels().path), str(ONEDNN))
    wrong = kernel_fuzz.fuzz(library, [stored_linear_cases.large_stored_linear], [0], [threads])
    assert not wrong, "\n".join(wrong)


def product(kernel: str, x, *stored: np.ndarray) -> np.ndarray:
    """x (rows, k) times the stored weights (n, k): (rows, n)."""
    library = kernel_fuzz.Library(str(build.build_kernels().path), str(ONEDNN))
    x = np.float32(x)
    y = np.full((len(x), len(stored[0])), np.nan, np.float32)
    assert library.run(kernel, [x, *stored, y]) == 0
    return y


def test_all_16_bit_weights_are_widened_exactly():
    """Subnormals, infinity and NaN too."""
    bits = np.arange(1 << 16, dtype=np.uint16)[:, None]
    half = bits.view(np.float16)
    assert np.array_equal(product("linear_float16", [[1]], half)[0], half[:, 0].astype(np.float32), equal_nan=True)
    expected = stored_linear_cases.float32_of_bfloat16(bits)[:, 0]
    assert np.array_equal(product("linear_bfloat16", [[1]], bits)[0], expected, equal_nan=True)


def test_all_scales_of_int8_weights_are_widened_exactly():
    scale = np.arange(1 << 16, dtype=np.uint16).view(np.float16)[:, None]
    values = np.random.RandomState(0).randint(-128, 128, (1 << 16, 1))
    weight = np.pad(values.astype(np.int8), ((0, 0), (0, 31)))
    finite = np.isfinite(scale[:, 0])
    found = product("linear_int8", np.eye(1, 32), weight, scale)[0]
    assert np.array_equal(found[finite], np.float32(values[finite, 0]) * np.float32(scale[finite, 0]))
    assert not np.isfinite(found[~finite]).any()


def test_values_that_are_not_finite_stay_in_their_row():
    x = np.ones((5, 32), np.float32)
    x[1, 7], x[3, 8] = np.nan, np.inf
    weight = np.full((19, 32), 0.5, np.float32)
    scale = np.full((19, 1), 0.5, np.float16)
    for kernel, *stored in (
        ("linear_bfloat16", stored_linear_cases.bfloat16(weight)),
        ("linear_float16", weight.astype(np.float16)),
        ("linear_int8", np.ones((19, 32), np.int8), scale),
    ):
        y = product(kernel, x, *stored)
        assert np.isnan(y[1]).all() and (y[3] == np.inf).all() and (y[[0, 2, 4]] == 16).all()
        assert product(kernel, x[:0], *stored).shape == (0, 19)
        assert product(kernel, x, *[array[:0] for array in stored]).shape == (5, 0)


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
