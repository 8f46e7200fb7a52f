"""Fixtures for all tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ffmpeg_files import corrupt_middle, make_clip
from processes import ROOT

import opensora  # noqa: F401, before MindSpore, whose threads heed what it sets
from opensora.process.control import USER_SIGNALS
from opensora.utils import logs

# Commands that tests start import this tree, whatever is installed.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


@pytest.fixture(autouse=True)
def log_on_stderr(monkeypatch):
    """The log goes where the commands send it: functions called in this process write theirs to stderr, too."""
    monkeypatch.delenv(logs.LEVEL, raising=False)
    logs.configure()


@pytest.fixture(autouse=True)
def signal_handlers():
    """A test that runs a command in this process leaves its signal handlers; programs started later inherit them."""
    handlers = {number: signal.getsignal(number) for number in USER_SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def real_clip(tmp_path_factory) -> Path:
    """A clip like one from a camera: H.264 with B-frames, and audio."""
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4")


@pytest.fixture(scope="session")
def corrupt_clip(real_clip) -> Path:
    """`real_clip` with overwritten bytes in the middle."""
    return corrupt_middle(real_clip, real_clip.with_name("corrupt.mp4"))


@pytest.fixture(scope="session")
def run():
    """Runs `python *arguments` from the project's folder as a user would; returns the finished process."""

    def run_python(*arguments, **kwargs) -> subprocess.CompletedProcess:
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, **kwargs)

    return run_python


@pytest.fixture(params=[1, 0], ids=["pynative", "graph"])
def mode(request):
    """The test runs in PyNative mode and in graph mode."""
    import mindspore as ms

    ms.set_context(mode=request.param)
    yield request.param
    ms.set_context(mode=1)
