"""benchmarks/full_size.py: what it measures, and how it reports runs that fail."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import pytest
from command_parsers import parser_of
from tiny_models import DIT, TEXT, VAE

from benchmarks import full_size, process_memory
from benchmarks.full_size import Result, command, drop_cache, memory_limit, table, weight_files
from benchmarks.process_memory import Usage, can_limit, watch
from opensora.cli.full_size_release import components, write_release
from opensora.config.commands import DEMO_MODEL

MEGABYTE = 1 << 20
# Fills memory for half a second.
HOG = "import time; data = bytearray({} << 20); data[::4096] = b'1' * len(data[::4096]); time.sleep(0.5)"
LOG = """
memory: planned peak 6.00 GB
denoising:   0%|          | 0/2 [00:00<?, ?step/s]
denoising:  50%|#####     | 1/2 [01:41<01:41, 101.2s/step]
denoising: 100%|##########| 2/2 [03:22<00:00, 101.2s/step]
time: load 20.0 s, encode 45.6 s, denoise 202.4 s, decode 12.0 s, step 101.2 s; peak memory 5.90 GB
"""


def python(program: str, **settings) -> Usage:
    return watch([sys.executable, "-c", program], Path.cwd(), **settings)


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("release")
    write_release(folder, components("fp32", DIT, VAE, TEXT), DEMO_MODEL / "text_encoder")
    return folder


def test_log_of_a_run():
    lines = [(float(number), line) for number, line in enumerate(LOG.splitlines())]
    result = Result.of("a run", Usage(lines=lines))
    assert result.stages == {"load": 20.0, "encode": 45.6, "step": 101.2, "decode": 12.0}
    assert result.planned == 6e9
    assert result.first_step == 3


def test_table():
    full = Result("a", {"load": 3.0}, 40.0, 6e9, Usage(int(9e9), int(5e9), int(4e9), int(17e9), seconds=50.0))
    killed = Result.of("b", Usage(status=-9, oom_kills=1, lines=[(0.0, "loading")]))
    first, second = table([full, killed], cat=20.0).splitlines()[2:]
    assert first == (
        "| a | 3.0 s | - | - | - | 50.0 s | 40.0 s | 2.00 | 6.00 GB | 9.00 GB | 1.50 | 5.00 GB | 4.00 GB | 17.00 GB "
        "| complete |"
    )
    assert second.startswith("| b | - |") and second.endswith("| killed, out of memory |")


def test_memory_of_a_command_and_its_children():
    alone = python(HOG.format(200))
    assert 200 * MEGABYTE < alone.anonymous < 260 * MEGABYTE
    assert max(alone.anonymous, alone.file) < alone.resident <= alone.anonymous + alone.file
    assert alone.limited_peak is None and 0.5 < alone.seconds < 20
    child = f"subprocess.run([sys.executable, '-c', {HOG.format(200)!r}])"
    both = python(f"import subprocess, sys; data = b'1' * (100 << 20); {child}")
    assert 300 * MEGABYTE < both.anonymous < 370 * MEGABYTE


def test_lines_and_failures_of_a_command():
    program = "import sys, time; write = sys.stderr.write; write('\\r10%'); time.sleep(0.3); write('\\r20%\\nlast')"
    complete = python(program)
    texts = [(seconds, text) for seconds, text in complete.lines if text]
    assert [text for _, text in texts] == ["10%", "20%", "last"]
    assert texts[1][0] - texts[0][0] > 0.2
    assert complete.failure() == ""
    assert python("import sys; sys.exit('error: no weights')").failure() == "status 1: error: no weights"
    assert Usage(status=1, lines=[(0, "RuntimeError: full"), (0, "C++")]).failure() == "status 1: RuntimeError: full"
    assert python("import os; os.kill(os.getpid(), 11)").failure() == "killed by SIGSEGV"


@pytest.mark.skipif(not can_limit(), reason="no right to create a cgroup with a memory limit")
def test_limit_of_memory():
    before = {path for path in Path("/sys/fs/cgroup").rglob("opensora-*")}
    killed = python(HOG.format(400), limit=100e6)
    assert killed.failure() == "killed, out of memory"
    assert 50e6 < killed.limited_peak <= 101e6
    complete = python(HOG.format(50), limit=200e6)
    assert complete.failure() == "" and complete.limited_peak > 50e6
    assert {path for path in Path("/sys/fs/cgroup").rglob("opensora-*")} == before


def test_without_cgroups_memory_is_not_limited(monkeypatch):
    monkeypatch.setattr(process_memory, "CGROUPS", ())
    assert not can_limit()
    assert python(HOG.format(200), limit=100e6).failure() == ""


def is_cached(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return bool(os.preadv(descriptor, [bytearray(1)], 0, os.RWF_NOWAIT))
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            pytest.skip("the file system does not show what is cached")
        return False
    finally:
        os.close(descriptor)


def test_files_leave_the_page_cache(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"1" * MEGABYTE)
    monkeypatch.setattr(full_size, "DROP_CACHES", tmp_path / "no folder/drop_caches")
    assert is_cached(path)
    drop_cache([path])
    assert not is_cached(path)


def test_limits():
    assert memory_limit("8GB") == 8e9 and memory_limit("1.5gb") == 1.5e9 and memory_limit("none") is None


def test_flags_are_those_of_sample():
    known = parser_of("opensora/sample/sample.py")._option_string_actions
    words = command(Path("weights"), (17, 256, 256), 2, "none", ["--save_memory"], "videos")
    assert words[1] == "opensora/sample/sample.py"
    assert {word for word in words if word.startswith("--")} <= set(known)
    assert "--memory" not in words and "weights/google/mt5-xxl" in words
    assert command(Path("weights"), (1, 64, 64), 2, "8GB", [], "videos")[-2:] == ["--memory", "8GB"]


def test_weight_files(release):
    names = {path.name for path in weight_files(release)}
    assert "model.safetensors" in names and "diffusion_pytorch_model-00003-of-00003.safetensors" in names
    assert all(name.endswith(".safetensors") for name in names)


def test_program_runs_sample(run, release, tmp_path):
    figures = tmp_path / "figures.json"
    arguments = ("--memory", "none", "--size", "5x64x64", "--steps", 2, "--threads", 1, "--warm", "--json", figures)
    flags = ("--", "--max_sequence_length", 16, "--precision", "fp32")
    finished = run("benchmarks/full_size.py", "--weights", release, *arguments, *flags)
    assert finished.returncode == 0, finished.stderr
    (result,) = json.loads(figures.read_text(encoding="utf-8"))["runs"]
    usage = result["usage"]
    assert usage["status"] == 0, usage["lines"]
    assert usage["seconds"] > 0 and usage["anonymous"] > 100 * MEGABYTE
    assert "| 5x64x64, none |" in finished.stdout
    assert finished.stdout.rstrip().endswith("| complete |")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--memory", "8"), "--memory 8: should be a size such as 8GB, or none"),
        (("--memory", "0GB"), "--memory 0GB: should be a size"),
        (("--weights", "/nowhere"), "/nowhere/LanguageBind/Open-Sora-Plan-v1.3.0/any93x640x640: no config.json"),
        (("--json", "/nowhere/figures.json"), "--json /nowhere/figures.json: there is no folder /nowhere"),
    ],
)
def test_mistakes_are_reported_in_a_line(run, arguments, message):
    finished = run("benchmarks/full_size.py", *arguments)
    assert finished.returncode == 1 and finished.stderr.startswith(f"error: {message}")
    assert finished.stderr.count("\n") == 1
