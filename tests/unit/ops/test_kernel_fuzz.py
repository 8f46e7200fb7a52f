"""Every C++ kernel against naive references, on random small shapes, as built for this CPU and for a smaller one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import kernel_fuzz
import pytest
from processes import ROOT

from opensora.ops.cpu import build, kernels

pytestmark = pytest.mark.skipif(kernels.library() is None, reason="no kernels here: no g++, or switched off")


@pytest.mark.parametrize("march", ["native", "x86-64-v3"])
@pytest.mark.parametrize("cases", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_kernels_compute_what_naive_references_do(cases, march, monkeypatch):
    monkeypatch.setenv(build.MARCH, march)
    try:
        path = build.build().path
    except ValueError as error:
        pytest.skip(str(error))
    wrong = kernel_fuzz.fuzz(kernel_fuzz.Library(str(path), str(kernels.PRODUCTS)), kernel_fuzz.OPERATORS, range(cases))
    assert not wrong, "\n".join(wrong)


def test_kernels_and_models_on_a_smaller_cpu(run):
    """A CPU with AVX2 and without AVX-512."""
    if "__AVX512F__" not in build._features("g++", "native"):
        pytest.skip("this CPU is the smaller one, or no x86")
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
    """AddressSanitizer sees every access; the process ends at the first that is out of bounds."""
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
        [
            sys.executable,
            "tests/helpers/kernel_fuzz.py",
            tmp_path / "asan.so",
            kernels.PRODUCTS,
            "--cases",
            "300",
            "--no-guards",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "LD_PRELOAD": sanitizer, "ASAN_OPTIONS": "detect_leaks=0"},
    )
    assert finished.returncode == 0, (finished.stdout + finished.stderr)[:5000]
