"""How the C++ kernels are built, cached and loaded. A tiny source replaces theirs, so that compiling is fast."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import ROOT

from opensora.ops.cpu import build

GXX = shutil.which("g++")
pytestmark = pytest.mark.skipif(GXX is None, reason="no g++ here")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The path of the cache folder, which does not exist yet; the source has one function, `sound`."""
    source = tmp_path / "src"
    source.mkdir()
    (source / "tiny.cc").write_text('extern "C" int sound() { return 1; }')
    monkeypatch.setattr(build, "SOURCE", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(build.tempfile, "gettempdir", lambda: str(tmp_path / "tmp"))
    monkeypatch.delenv(build.MARCH, raising=False)
    monkeypatch.delenv(build.SWITCH, raising=False)
    return tmp_path / "cache/opensora"


def library_path(folder: Path) -> Path:
    """Where the library will be."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / f"kernels-{build.key(GXX, 'native')}.so"


def planted(folder: Path) -> bytes:
    """Another user's library with a different function and a valid checksum."""
    source, path = folder / "evil.cc", folder / "evil.so"
    source.write_text('extern "C" int planted() { return 1; }')
    subprocess.run([GXX, "-shared", "-fPIC", source, "-o", path], check=True)
    return signed(path.read_bytes())


def signed(content: bytes) -> bytes:
    content += build.CHECKSUM
    return content + hashlib.sha256(content).digest()


def test_built_once_and_private(cache, capfd):
    old_mask = os.umask(0)  # permissions must not depend on it
    try:
        first = build.build_kernels()
    finally:
        os.umask(old_mask)
    assert first.functions.sound() == 1 and first.path == library_path(cache)
    assert cache.stat().st_mode & 0o777 == 0o700 and first.path.stat().st_mode & 0o777 == 0o700
    modified = first.path.stat().st_mtime_ns
    assert build.build_kernels().path.stat().st_mtime_ns == modified
    assert capfd.readouterr().err.count("building the CPU kernels") == 1


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "no checksum", "unloadable", "folder link", "link"])
def test_a_damaged_library_is_built_again(cache, damage, tmp_path, capfd):
    path = library_path(cache)
    content = planted(tmp_path)
    if damage == "folder link":  # of the user's own: allowed
        cache.rmdir()
        (tmp_path / "disk").mkdir(mode=0o700)
        cache.symlink_to(tmp_path / "disk")
    elif damage == "link":
        (tmp_path / "elsewhere.so").write_bytes(content)
        path.symlink_to(tmp_path / "elsewhere.so")
    else:
        path.write_bytes(
            {
                "truncated": content[: len(content) // 2],
                "empty": b"",
                "text": b"not a library",
                "no checksum": content[:-64],
                "unloadable": signed(b"not a library"),
            }[damage]
        )
        path.chmod(0o700)
    loaded = build.build_kernels()
    assert loaded.functions.sound() == 1 and not hasattr(loaded.functions, "planted")
    assert not path.is_symlink()
    assert capfd.readouterr().err.count("building the CPU kernels") == 1
    build.build_kernels()
    assert "building" not in capfd.readouterr().err


def test_a_library_that_can_never_be_loaded_is_compiled_once_per_folder(cache, monkeypatch, capfd):
    def refuse(path):
        raise OSError(f"{path}: failed to map segment")

    monkeypatch.setattr(build.ctypes, "CDLL", refuse)
    assert build.library.__wrapped__() is None
    errors = capfd.readouterr().err
    assert errors.count("building the CPU kernels") == 2
    assert errors.count("warning: no fused CPU kernels (") == 1 and "failed to map segment" in errors


@pytest.mark.parametrize("mode, owner", [(0o777, None), (0o770, None), pytest.param(0o755, 12345, marks=as_root)])
def test_a_folder_that_others_can_write_is_not_used(cache, mode, owner, tmp_path, capfd):
    path = library_path(cache)
    path.write_bytes(planted(tmp_path))
    cache.chmod(mode)
    if owner is not None:
        os.chown(path, owner, owner)
        os.chown(cache, owner, owner)
    loaded = build.build_kernels()
    assert loaded.functions.sound() == 1 and not hasattr(loaded.functions, "planted")
    assert loaded.path.parent == tmp_path / f"tmp/opensora-{os.geteuid()}"
    note = capfd.readouterr().err
    assert f"warning: {cache}: " in note and f"the CPU kernels are cached in {loaded.path.parent} instead" in note


@pytest.mark.parametrize("mode, owner", [(0o777, None), (0o720, None), pytest.param(0o755, 12345, marks=as_root)])
def test_a_library_that_others_can_write_is_not_loaded(cache, mode, owner, tmp_path):
    path = library_path(cache)
    path.write_bytes(planted(tmp_path))
    path.chmod(mode)
    if owner is not None:
        os.chown(path, owner, owner)
    loaded = build.build_kernels()
    assert loaded.path == path and loaded.functions.sound() == 1 and not hasattr(loaded.functions, "planted")


def test_neither_folder_can_be_used(cache, tmp_path, capfd):
    cache.parent.mkdir()
    cache.write_text("a file in the way")
    (tmp_path / f"tmp/opensora-{os.geteuid()}").mkdir(mode=0o777)
    (tmp_path / f"tmp/opensora-{os.geteuid()}").chmod(0o777)
    assert build.library.__wrapped__() is None
    (note,) = capfd.readouterr().err.splitlines()
    assert "no fused CPU kernels" in note and f"{cache}: File exists; " in note and "chmod go-w" in note


def test_a_file_system_without_programs_is_not_used(cache, monkeypatch, capfd):
    status = os.statvfs(cache.parents[1])

    def mounted(path):
        return type("Status", (), {"f_flag": status.f_flag | (os.ST_NOEXEC if Path(path) == cache else 0)})

    monkeypatch.setattr(build.os, "statvfs", mounted)
    assert build.build_kernels().path.parent != cache
    assert "noexec" in capfd.readouterr().err


def test_neither_a_home_nor_an_account(cache, monkeypatch, tmp_path, capfd):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert build.build_kernels().path.parent == tmp_path / f"tmp/opensora-{os.geteuid()}"


def test_a_source_that_does_not_compile_is_not_fatal(cache, capfd):
    (build.SOURCE / "tiny.cc").write_text("int main( {")
    assert build.library.__wrapped__() is None
    assert "no fused CPU kernels" in capfd.readouterr().err
    assert not list(cache.glob("*.so")) and not list(cache.glob(".*"))


def test_processes_that_start_together_compile_once(cache, tmp_path):
    """The compiler is a script that says when it compiles and takes its time."""
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    (bin_folder / "g++").write_text(
        f'#!/bin/sh\ncase "$*" in *-shared*) echo x >> {tmp_path}/count; sleep 0.5;; esac\nexec {GXX} "$@"\n'
    )
    (bin_folder / "g++").chmod(0o755)
    code = (
        f"from pathlib import Path; from opensora.ops.cpu import build; build.SOURCE = Path({str(build.SOURCE)!r}); "
        "print(build.build_kernels().functions.sound())"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            env={**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"},
        )
        for _ in range(4)
    ]
    assert [process.communicate(timeout=60)[0] for process in processes] == ["1\n"] * 4
    assert (tmp_path / "count").read_text() == "x\n"


def test_importing_compiles_nothing_and_says_nothing(tmp_path):
    code = (
        "import sys; import opensora.ops.norms, opensora.ops.conv, opensora.models, opensora.sample.job; "
        "from opensora.ops.cpu.build import library; print(library.cache_info().currsize)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
    )
    assert finished.stdout == "0\n" and "kernels" not in finished.stderr and not list(tmp_path.iterdir())


def without_a_feature() -> str:
    """An instruction set that g++ knows and this CPU does not have; no CPU has all three."""
    names = ("x86-64-v4", "knl", "znver3") if os.uname().machine == "x86_64" else ("armv8.6-a", "armv9-a")
    native = build._features(GXX, "native")
    lacking = [name for name in names if (build._features(GXX, name) or native) - native]
    return lacking[0] if lacking else pytest.skip("this CPU has all")


def test_the_instruction_set_is_checked(cache, monkeypatch):
    for value in ("avx512", "x86-64-v3 -DX", "-v", "@file", "native\n"):
        monkeypatch.setenv(build.MARCH, value)
        with pytest.raises(
            ValueError, match=f"^{build.MARCH}={re.escape(value)}: g[+][+] does not know this instruction set; "
        ):
            build.library.__wrapped__()
    monkeypatch.setenv(build.SWITCH, "0")
    build.check_settings()  # nothing will be built
    monkeypatch.delenv(build.SWITCH)
    monkeypatch.setenv(build.MARCH, without_a_feature())
    with pytest.raises(ValueError, match="this CPU lacks [A-Z]"):
        build.check_settings()
    with pytest.raises(ValueError, match="this CPU lacks [A-Z]"):
        build.library.__wrapped__()


def test_the_key_changes_with_what_the_library_depends_on(cache, monkeypatch):
    keys = {build.key(GXX, "native"), build.key(GXX, "x86-64-v3")}
    monkeypatch.setattr(build, "_cpu", lambda: "another")
    assert build.key(GXX, "x86-64-v3") in keys
    keys.add(build.key(GXX, "native"))
    (build.SOURCE / "tiny.cc").write_text("// nothing")
    keys.add(build.key(GXX, "native"))
    assert len(keys) == 4


@pytest.mark.parametrize(
    "keys, message",
    [
        (["ab12", "ab12", None], "rank 2 of 3 has no fused CPU kernels"),
        ([None, "ab12"], "rank 0 of 2 has no fused CPU kernels"),
        (["ab12", "ab13"], "rank 1 has other CPU kernels than rank 0"),
        (["ab12", "ab12"], None),
        ([None, None], None),
    ],
)
def test_processes_of_a_run_agree(keys, message, monkeypatch):
    from opensora.ops.cpu import ranks

    monkeypatch.setattr(ranks, "has_sgemm", lambda: True)

    def row(key):
        monkeypatch.setattr(ranks, "library", lambda: key and build.Library(Path("kernels.so"), key * 4, None))
        gathered = []
        monkeypatch.setattr(ranks.ops, "AllGather", lambda: lambda own: gathered.append(own.asnumpy()) or own)
        ranks.check_ranks_agree()
        return gathered[0]

    rows = np.concatenate([row(key) for key in keys])
    monkeypatch.setattr(ranks.ops, "AllGather", lambda: lambda own: ranks.Tensor(rows))
    if message is None:
        ranks.check_ranks_agree()
    else:
        with pytest.raises(ValueError, match=message):
            ranks.check_ranks_agree()
