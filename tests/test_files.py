"""Files appear whole or not at all."""
from __future__ import annotations

import pytest

from opensora.utils.files import atomic_write


def test_a_file_appears_when_it_is_whole(tmp_path):
    target = tmp_path / "new/a[1].txt"
    with atomic_write(target) as temporary:
        temporary.write_text("whole")
        assert temporary.suffix == ".txt" and not target.exists()
    assert [path.name for path in target.parent.iterdir()] == ["a[1].txt"] and target.read_text() == "whole"


def test_a_failure_leaves_what_was_there(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError):
        with atomic_write(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and target.read_text() == "old"


def test_left_overs_of_a_killed_process_go(tmp_path):
    (tmp_path / ".a.0123abcd.part.txt").write_text("half")
    (tmp_path / ".b.0123abcd.part.txt").write_text("of another file")
    with atomic_write(tmp_path / "a.txt") as temporary:
        temporary.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".b.0123abcd.part.txt", "a.txt"]
