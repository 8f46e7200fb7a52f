"""Checkpoints: which are kept, which one a run resumes from, and crashes at any point of a save."""

from __future__ import annotations

import builtins
import csv
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from opensora.checkpoint.lazy_tensor import ArrayTensor
from opensora.train.checkpoint import ModelAndOptimizer, save_checkpoint
from opensora.train.checkpoint_folder import checkpoints, find_checkpoint, find_corruption, named_checkpoint
from opensora.train.log import Table, TrainingLog


class TinyModel:
    """The interface of a model that `save_checkpoint` uses."""

    def torch_buffers(self) -> dict:
        return {}

    def parameters_and_names(self) -> list:
        return []

    def save_config(self, folder: Path) -> None:
        (folder / "config.json").write_text("{}")


class TinyOptimizer:
    """The interface of an optimizer that `save_checkpoint` uses; all elements are `value`."""

    ema = True

    def __init__(self, value: float):
        self.tensor = ArrayTensor(np.full(3, value, np.float32))

    def weights(self) -> dict:
        return {"w": self.tensor}

    ema_weights = weights

    def state_tensors(self) -> dict:
        return {"exp_avg.w": self.tensor, "exp_avg_sq.w": self.tensor, "ema.w": self.tensor}

    def state_numbers(self) -> dict:
        return {"steps": 1}


def save(folder: Path, step: int, keep=None, mark: int = 0) -> None:
    """`mark` distinguishes checkpoints of one step."""
    trained = {"": ModelAndOptimizer(TinyModel(), TinyOptimizer(step))}
    save_checkpoint(folder, step, trained, {"skipped_steps": 0, "mark": mark}, keep, is_main=True)


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoints(folder)]


def corrupt(checkpoint: Path) -> None:
    with open(checkpoint / "optimizer.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")


def mark_of(checkpoint: Path) -> int:
    return json.loads((checkpoint / "state.json").read_text())["mark"]


def convert_to_earlier_version(checkpoint: Path) -> None:
    """Removes the serial number and the list of files."""
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps({k: v for k, v in state.items() if k not in ("serial", "files")}))
    rewrite_sums(checkpoint, lambda name: True)


def rewrite_sums(checkpoint: Path, keep) -> None:
    """Writes the checksums of the files whose names `keep` accepts."""
    names = sorted(path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file())
    sums = {
        name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest()
        for name in names
        if name != "SHA256SUMS" and keep(name)
    }
    (checkpoint / "SHA256SUMS").write_text("".join(f"{checksum}  {name}\n" for name, checksum in sums.items()))


@pytest.mark.parametrize("earlier_version", [False, True])
def test_resumed_run_keeps_its_own_checkpoints(tmp_path, earlier_version):
    for step in (8, 16, 20):
        save(tmp_path, step)
        if earlier_version:
            convert_to_earlier_version(tmp_path / f"checkpoint-{step}")
    assert names(tmp_path) == ["checkpoint-20", "checkpoint-16", "checkpoint-8"]
    save(tmp_path, 12, keep=2)  # resumed from checkpoint-8
    assert names(tmp_path) == ["checkpoint-12", "checkpoint-20"]
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-12"
    save(tmp_path, 14, keep=2)
    assert names(tmp_path) == ["checkpoint-14", "checkpoint-12"]


def test_new_run_in_old_folder_keeps_its_own_checkpoints(tmp_path):
    for step in (100, 200, 300):
        save(tmp_path, step, mark=1)
    for step in (100, 200, 300, 400):
        save(tmp_path, step, keep=1, mark=2)
        assert names(tmp_path) == [f"checkpoint-{step}"] and mark_of(tmp_path / f"checkpoint-{step}") == 2
    assert not [path for path in tmp_path.iterdir() if path.name != "checkpoint-400"]


def test_corrupt_checkpoints_do_not_count_as_kept(tmp_path, capsys):
    for step in (4, 8, 16):
        save(tmp_path, step)
    corrupt(tmp_path / "checkpoint-16")
    (tmp_path / "checkpoint-20").mkdir()  # without a state
    save(tmp_path, 12, keep=2)  # resumed from checkpoint-8
    assert names(tmp_path) == ["checkpoint-12", "checkpoint-8"]
    assert "checkpoint-16 is corrupt" in capsys.readouterr().err
    corrupt(tmp_path / "checkpoint-12")
    save(tmp_path, 10, keep=1)  # resumed from checkpoint-8
    assert names(tmp_path) == ["checkpoint-10"] and find_corruption(tmp_path / "checkpoint-10") is None


def test_changed_checkpoint_is_checked_again(tmp_path):
    save(tmp_path, 4, keep=3)
    save(tmp_path, 8, keep=3)
    shutil.rmtree(tmp_path / "checkpoint-8/model_ema")
    save(tmp_path, 12, keep=2)
    assert names(tmp_path) == ["checkpoint-12", "checkpoint-4"]


@pytest.mark.parametrize(
    "remove, words",
    [
        ("model_ema", "model_ema/.* is missing from SHA256SUMS"),
        ("model", "model/.* is missing from SHA256SUMS"),
        ("optimizer.safetensors", "optimizer.safetensors is missing from SHA256SUMS"),
        ("state.json", "state.json is missing"),
    ],
)
def test_file_removed_with_its_checksum_is_detected(tmp_path, remove, words):
    save(tmp_path, 4)
    save(tmp_path, 8)
    checkpoint = tmp_path / "checkpoint-8"
    path = checkpoint / remove
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    rewrite_sums(checkpoint, lambda name: name.split("/")[0] != remove)
    with pytest.raises(ValueError, match=words):
        find_checkpoint(tmp_path, "checkpoint-8")
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-4"


def test_invalid_checksum_names_and_states_are_corruption(tmp_path):
    save(tmp_path, 4)
    sums = tmp_path / "checkpoint-4/SHA256SUMS"
    text = sums.read_text()
    for name in ("/etc/passwd", "../x", "pipe", "model"):
        if name == "pipe":
            os.mkfifo(tmp_path / "checkpoint-4/pipe")
        sums.write_text(f"{text}{'0' * 64}  {name}\n")
        assert find_corruption(tmp_path / "checkpoint-4") is not None, name
    for state in ("[1]", "{", "[" * 100_000, '{"files": 3}'):
        (tmp_path / "checkpoint-4/state.json").write_text(state)
        rewrite_sums(tmp_path / "checkpoint-4", lambda name: name != "pipe")
        assert "state.json" in find_corruption(tmp_path / "checkpoint-4")
        assert names(tmp_path) == ["checkpoint-4"]


def test_checkpoints_of_earlier_versions_are_accepted(tmp_path):
    save(tmp_path, 16)
    convert_to_earlier_version(tmp_path / "checkpoint-16")
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-16"
    rewrite_sums(tmp_path / "checkpoint-16", lambda name: name != "optimizer.safetensors")
    assert find_corruption(tmp_path / "checkpoint-16") == "optimizer.safetensors is missing from SHA256SUMS"


@pytest.mark.parametrize(
    "make",
    [lambda path: path.write_text("mine"), lambda path: path.symlink_to(path.parent / "nowhere"), Path.mkdir],
    ids=["file", "dangling link", "empty folder"],
)
@pytest.mark.parametrize(
    "name", ["checkpoint-16", "checkpoint-16.part", "checkpoint-20", "checkpoint-x", "checkpoint-²"]
)
def test_foreign_files_with_checkpoint_names_do_not_stop_a_run(tmp_path, name, make):
    make(tmp_path / name)
    with_content = name == "checkpoint-16" and (tmp_path / name).is_file()
    for step in (8, 16, 24):
        save(tmp_path, step, keep=2)
    assert names(tmp_path) == ["checkpoint-24", "checkpoint-16"]
    assert find_checkpoint(tmp_path, "latest").name == "checkpoint-24"
    assert not with_content or (tmp_path / "checkpoint-16.aside1").read_text() == "mine"


def test_discarding_a_linked_checkpoint_keeps_its_target(tmp_path):
    save(tmp_path, 8)
    shutil.move(tmp_path / "checkpoint-8", tmp_path / "elsewhere")
    (tmp_path / "checkpoint-8").symlink_to(tmp_path / "elsewhere")
    assert names(tmp_path) == ["checkpoint-8"]
    save(tmp_path, 16, keep=1)
    assert names(tmp_path) == ["checkpoint-16"] and find_corruption(tmp_path / "elsewhere") is None


class Crash(BaseException):
    """The process is gone: none of its later calls happens."""


CALLS = [
    (builtins, "open"),
    *(
        (os, name)
        for name in ("open", "rename", "replace", "mkdir", "rmdir", "unlink", "remove", "fsync", "posix_fallocate")
    ),
]


def crash_at(monkeypatch, number: int) -> list[str]:
    """Call `number` to the file system and all later ones fail; returns the list of the calls made."""
    made = []
    for module, name in CALLS:
        original = getattr(module, name)

        def call(*args, original=original, name=name, **kwargs):
            if len(made) >= number:
                raise Crash(name)
            made.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(module, name, call)
    return made


def test_crash_at_any_point_of_a_save_loses_nothing(tmp_path, monkeypatch):
    """The save replaces a checkpoint of the same step and removes an older one."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # slow, and it only matters after a power cut
    point, done = 0, False
    while not done:
        folder = tmp_path / str(point)
        save(folder, 4, mark=1)
        save(folder, 8, mark=1)
        with monkeypatch.context() as patched:
            calls = crash_at(patched, point)
            try:
                save(folder, 8, keep=1, mark=2)
                done = True
            except Crash:
                pass
        found = find_checkpoint(folder, "latest")
        assert found is not None and find_corruption(found) is None, (point, calls)
        step_8 = [path for path in checkpoints(folder) if path.name.startswith("checkpoint-8")]
        assert len(step_8) == 1 and find_corruption(step_8[0]) is None, (point, calls)
        assert found == step_8[0] == named_checkpoint(folder, "checkpoint-8"), (point, calls)
        assert mark_of(found) == 2 or find_corruption(folder / "checkpoint-4") is None, (point, calls)
        save(folder, 12, keep=2, mark=3)  # the resumed run cleans up
        assert names(folder) == ["checkpoint-12", "checkpoint-8"], (point, calls)
        assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-12", "checkpoint-8"], (point, calls)
        point += 1
    assert point > 60 and calls.count("rename") >= 4


def test_failure_at_any_point_of_a_save_loses_nothing(tmp_path, monkeypatch):
    """As on a full disk: one call fails, and the calls that clean up succeed."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    for point in range(1000):
        folder = tmp_path / str(point)
        save(folder, 8, mark=1)
        failed = False
        with monkeypatch.context() as patched:
            calls = 0
            for module, name in CALLS:
                original = getattr(module, name)

                def call(*args, original=original, **kwargs):
                    nonlocal calls, failed
                    calls += 1
                    if calls == point + 1:
                        failed = True
                        raise OSError(28, "No space left on device", "x")
                    return original(*args, **kwargs)

                patched.setattr(module, name, call)
            try:
                save(folder, 8, keep=1, mark=2)
                saved = True
            except OSError:
                saved = False
        found = find_checkpoint(folder, "latest")
        assert found.name == "checkpoint-8" and find_corruption(found) is None, point
        assert mark_of(found) == 2 or not saved, point
        assert saved or len(list(folder.iterdir())) == 1, (point, list(folder.iterdir()))
        if not failed:
            break
    assert point > 50


def table(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_corrupt_table_lines_are_removed_and_listed(tmp_path, capsys):
    path = tmp_path / "train_log.csv"
    rows = [f"{step},{step / 2},,1e-3\r\n".encode() for step in range(1, 9)]
    corrupt = [
        b"3,0.5\r\n",
        b"\x00\x00\xff\xfe,1,2,3\n",
        b"\n",
        b"4x,0.5,,1\n",
        b"4,a,b,c\n",
        b'5,"0.5,,1\n',
        b"6,1,2,3,4\n",
        b"\x00" * 200_000 + b"\n",
    ]
    path.write_bytes(b"step,loss,discriminator_loss,lr\r\n" + b"".join(rows[:4] + corrupt + rows[4:]) + b"9,4.5,,1")
    Table(path, last_step=6)
    assert [row["step"] for row in table(path)] == list("123456")
    assert table(path)[0] == {"step": "1", "loss": "0.5", "discriminator_loss": "", "lr": "1e-3"}
    assert "removed 9 corrupt lines (6, 7, 8, 9, 10, 11, 12, 13, 18)" in capsys.readouterr().err
    Table(path, last_step=6)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "content, words",
    [
        (b"ste", "corrupt line"),
        (b"\x00" * 200_000, "corrupt line"),
        (b"1,0.5\n2,0.4\n", "corrupt line"),
        (b"", None),
        (b"step,loss\n1,2.0\n", "another run"),
    ],
)
def test_table_of_another_run_is_renamed(tmp_path, content, words, capsys):
    path = tmp_path / "train_log.csv"
    path.write_bytes(content)
    log = Table(path, last_step=0)
    log.add(1, {"loss": 0.5, "discriminator_loss": None})
    assert table(path) == [{"step": "1", "loss": "0.5", "discriminator_loss": ""}]
    message = capsys.readouterr().err
    assert words in message if words else message == ""
    assert not words or (tmp_path / "train_log.csv.aside1").read_bytes() == content


def test_table_columns_may_change(tmp_path):
    log = Table(tmp_path / "train_log.csv", last_step=0)
    log.add(1, {"loss": 0.5, "lr": 0.1})
    log.add(2, {"loss": 0.25, "kl_loss": float("nan"), "lr": 0.1})
    log = Table(tmp_path / "train_log.csv", last_step=2)
    log.add(3, {"loss": 0.125, "lr": 0.1})
    assert [list(row.values()) for row in table(tmp_path / "train_log.csv")] == [
        ["1", "0.5", "0.1", ""],
        ["2", "0.25", "0.1", "nan"],
        ["3", "0.125", "0.1", ""],
    ]


def test_missing_value_is_an_empty_cell(tmp_path, capsys):
    log = TrainingLog(tmp_path, first_step=0, total_steps=4)
    for step, value in enumerate((None, None, 1.0, None), 1):
        log.step(step, {"loss": 0.5, "discriminator_loss": value, "lr": 0.1}, show=step % 2 == 0)
    log.close()
    first, second = capsys.readouterr().err.splitlines()
    assert "loss 0.5 | discriminator_loss | lr 0.1" in first and "discriminator_loss 1 |" in second
    assert [row["discriminator_loss"] for row in table(tmp_path / "train_log.csv")] == ["", "", "1.0", ""]
