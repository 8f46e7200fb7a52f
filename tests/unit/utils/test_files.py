"""Atomic writes, folder locks and the handling of signals."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import ExitStack

import pytest
from processes import ROOT

from opensora.utils.files import atomic_write
from opensora.utils.folder_lock import check_free_space, exclusive_folder


def started(code: str, *arguments) -> subprocess.Popen:
    """Starts a Python process and waits until it has printed a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline()
    return process


WRITES = """
    import sys, time
    from opensora.utils.files import atomic_write
    with atomic_write(sys.argv[1]) as temporary:
        temporary.write_text("half")
        print("writing", flush=True)
        time.sleep(60)
"""
LOCKS = """
    import sys, time
    from opensora.utils.folder_lock import exclusive_folder
    with exclusive_folder(sys.argv[1]):
        print("locked", flush=True)
        time.sleep(60)
"""


def test_file_appears_only_when_complete(tmp_path):
    target = tmp_path / "new/a[1].txt"
    with atomic_write(target) as temporary:
        temporary.write_text("whole")
        assert temporary.suffix == ".txt" and not target.exists()
    assert [path.name for path in target.parent.iterdir()] == ["a[1].txt"] and target.read_text() == "whole"


def test_failed_write_keeps_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError):
        with atomic_write(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and target.read_text() == "old"


def test_written_file_has_the_default_permissions(tmp_path):
    mask = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "a.txt") as temporary:
            temporary.write_text("whole")
    finally:
        os.umask(mask)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_temporary_files_of_living_processes_and_other_targets_are_kept(tmp_path):
    living = started(WRITES, tmp_path / "a.mp4")
    other = started(WRITES, tmp_path / "a.b.mp4")
    try:
        other.kill()
        other.wait()
        with atomic_write(tmp_path / "a.mp4") as temporary:
            temporary.write_text("whole")
        assert sum(path.name.startswith(".a.") for path in tmp_path.iterdir()) == 2
        with atomic_write(tmp_path / "a.b.mp4") as temporary:
            temporary.write_text("whole")
        assert len(list(tmp_path.glob(".a.b.*"))) == 0
        assert len(list(tmp_path.glob(".a.*"))) == 1
    finally:
        living.kill()
        living.wait()


def test_two_writers_of_one_target_do_not_interfere(tmp_path):
    with ExitStack() as stack:
        first, second = (stack.enter_context(atomic_write(tmp_path / "a.txt")) for _ in range(2))
        first.write_text("1")
        second.write_text("2")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_folder_is_locked_for_one_run(tmp_path):
    folder = tmp_path / "new/results"
    first = started(LOCKS, folder)
    with pytest.raises(ValueError, match=f"another run writes to this folder .process {first.pid} on "):
        with exclusive_folder(folder):
            pass
    with exclusive_folder(folder, is_main=False):
        pass
    first.kill()
    first.wait()
    with exclusive_folder(folder):
        assert (folder / ".lock").exists()
    assert list(folder.iterdir()) == []


def test_concurrent_runs_never_share_a_folder(tmp_path):
    """No process keeps a lock on a file that another one has removed."""
    code = """
        import sys, time
        from pathlib import Path
        from opensora.utils.folder_lock import exclusive_folder
        folder = Path(sys.argv[1])
        print("started", flush=True)
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            try:
                with exclusive_folder(folder):
                    (folder / "inside").touch(exist_ok=False)
                    (folder / "inside").unlink()
            except ValueError:
                pass
    """
    processes = [started(code, tmp_path) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]


def test_unusable_folders_are_rejected(tmp_path):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(OSError, match="the output folder or its parent is a file"):
            with exclusive_folder(folder):
                pass
    with pytest.raises(OSError, match="output folder cannot be created.*choose another"):
        with exclusive_folder("/proc/new"):
            pass
    with pytest.raises(OSError, match="will be written, but .* are free"):
        check_free_space(tmp_path, 1e18)
    check_free_space(tmp_path, 1)


COMMAND = """
    import sys, time
    from opensora.config.command_line import run_main
    from opensora.utils.files import atomic_write
    from opensora.process.signals import Stopped, graceful_stop

    def plain():
        with atomic_write(sys.argv[2]) as temporary:
            print("started", flush=True)
            time.sleep(60)

    def graceful():
        with graceful_stop("saving") as stop:
            print("started", flush=True)
            while stop.signal is None or sys.argv[3:]:
                time.sleep(0.05)
        raise Stopped(stop.signal, "saved")

    run_main({"plain": plain, "graceful": graceful}[sys.argv[1]])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_end_a_command_gracefully(number, tmp_path):
    for kind in ("plain", "graceful"):
        process = started(COMMAND, kind, tmp_path / "a.txt")
        process.send_signal(number)
        process.send_signal(number)  # as timeout and shells do
        assert process.wait(timeout=10) == 128 + number
        assert list(tmp_path.iterdir()) == []


def test_second_signal_ends_a_command_at_once(tmp_path):
    process = started(COMMAND, "graceful", tmp_path / "a.txt", "forever")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.8)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == -signal.SIGTERM
