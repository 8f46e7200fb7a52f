"""Importing the package changes nothing outside of it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from processes import ROOT

# Imports every module, with programs started, signal handlers, log handlers and settings of MindSpore watched.
PROGRAM = """
import ctypes, logging, os, pathlib, pkgutil, signal, subprocess, sys
# What these do is not this project's; mmengine, for example, writes a grammar to the cache.
import mindspore, numpy, transformers, tqdm, cv2, mmengine.config, imageio
from PIL import Image

def state():
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    files = sorted(pathlib.Path(".").rglob("*"))  # the current folder is HOME, TMPDIR and the cache, too
    log = list(logging.root.handlers), logging.root.level
    return handlers, files, log, mindspore.get_context("mode"), list(sys.path)

def refuse(*arguments, **settings):
    raise AssertionError(f"a program was started: {arguments}")

before = state()
flag, limit = ctypes.RTLD_GLOBAL, Image.MAX_IMAGE_PIXELS
subprocess.Popen = os.system = refuse
import opensora
names = [module.name for module in pkgutil.walk_packages(opensora.__path__, "opensora.")]
for name in names:
    if not name.endswith("__main__"):
        __import__(name)
assert state() == before
assert (flag, limit) == (ctypes.RTLD_GLOBAL, Image.MAX_IMAGE_PIXELS)
assert logging.getLogger("opensora").handlers == [] and logging.getLogger("opensora").level == logging.NOTSET
assert not {"decord", "torch"} & set(sys.modules)
from opensora.ops.cpu import build, runtime
assert build.library.cache_info().currsize == runtime.tune_process.cache_info().currsize == 0
print(len(names))
"""


def test_import_has_no_side_effects(tmp_path):
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "TMPDIR": str(tmp_path),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) > 100
    assert "building the CPU kernels" not in finished.stderr


@pytest.mark.parametrize("given, expected", [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_openmp_wait_policy_is_a_default(given, expected):
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment.update({"OMP_WAIT_POLICY": given} if given else {})
    program = "import os, opensora; print(os.environ['OMP_WAIT_POLICY'])"
    finished = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert finished.stdout.strip() == expected
