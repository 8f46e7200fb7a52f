"""The captions of `opensora prepare`: text files, tables, one for all, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from opensora.datasets.prepare.captions import find_captions
from opensora.errors import UserError

NAMES = ["a.mp4", "sub/b.mp4", "c.jpg"]


def captions_of(folder: Path, table: str = "", default: str = "") -> dict:
    return find_captions(folder, NAMES, table or None, default or None).of


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_text_files_beside_the_clips(tmp_path):
    write(tmp_path, "a.txt", "\ufeffA cat\nsleeps. \n")
    write(tmp_path, "sub/b.txt", "\u4e2d\u6587")
    write(tmp_path, "c.txt", " \n")
    found = find_captions(tmp_path, NAMES, None, None)
    assert found.of == {"a.mp4": "A cat sleeps.", "sub/b.mp4": "\u4e2d\u6587"}
    assert found.missing == ["c.jpg: no caption (c.txt is empty)"] and not found.unknown


@pytest.mark.parametrize("header", ["path,caption", "file,text", "video,cap", "id,Text, Path", "file_name,text"])
def test_csv_file(header, tmp_path):
    columns = [name.strip().lower() for name in header.split(",")]
    rows = [{"id": "1", "caption": f'"{text}"', "path": name} for name, text in (("a.mp4", "one, two"), ("c.jpg", "x"))]
    same = {"file": "path", "video": "path", "file_name": "path", "text": "caption", "cap": "caption"}
    lines = [",".join(row[same.get(name, name)] for name in columns) for row in rows]
    table = write(tmp_path, "captions.csv", "\n".join([header, *lines]))
    assert captions_of(tmp_path, table) == {"a.mp4": "one, two", "c.jpg": "x"}


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.json"])
def test_json_file(name, tmp_path):
    items = [
        {"path": "./a.mp4", "caption": "one"},
        {"file": str(tmp_path / "sub/b.mp4"), "text": ["two", "three"]},
        {"video": "c.jpg", "cap": None},
    ]
    text = json.dumps(items) if name.endswith(".json") else "\n".join(map(json.dumps, items))
    assert captions_of(tmp_path, write(tmp_path, name, text)) == {"a.mp4": "one", "sub/b.mp4": ["two", "three"]}


def test_several_rows_of_a_file_are_a_list(tmp_path):
    table = write(tmp_path, "captions.csv", "path,caption\na.mp4,one\nc.jpg,x\na.mp4,two\n")
    assert captions_of(tmp_path, table) == {"a.mp4": ["one", "two"], "c.jpg": "x"}


def test_table_comes_before_text_file_before_default(tmp_path):
    table = write(tmp_path, "captions.csv", "path,caption\na.mp4,of the table\nsub/b.mp4,\n")
    for name in ("a.txt", "sub/b.txt"):
        write(tmp_path, name, "of the text file")
    assert captions_of(tmp_path, table, "of the flag") == {
        "a.mp4": "of the table",
        "sub/b.mp4": "of the text file",
        "c.jpg": "of the flag",
    }


def test_rows_of_missing_files_are_listed(tmp_path):
    table = write(tmp_path, "captions.csv", "path,caption\na.mp4,one\ngone.mp4,two\n")
    found = find_captions(tmp_path, NAMES, table, None)
    assert found.unknown == ["gone.mp4"] and list(found.of) == ["a.mp4"]
    assert found.missing == ["sub/b.mp4: no caption", "c.jpg: no caption"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("t.csv", b"name,caption\na.mp4,x\n", "needs a column path, file, .* its first line has name, caption"),
        ("t.csv", b"path,words\na.mp4,x\n", "and a column caption, text or cap"),
        ("t.csv", b"", "its first line has none"),
        ("t.csv", b"path,caption\n", "t.csv: has no rows"),
        ("t.csv", b"path,caption\nother/a.mp4,x\n", "none of its 1 paths is a video or image in .*'other/a.mp4'"),
        ("t.csv", "path,caption\na.mp4,\xe9".encode("latin-1"), "t.csv: not UTF-8 text"),
        ("t.jsonl", b'{"path": "a.mp4", "cap": 3}\n', "t.jsonl: entry 0: the caption 3 should be a text"),
        ("t.jsonl", b'{"path": "a.mp4", "cap": "x"}\nnot json\n{"path": "c.jpg"}', "entry 1: this line is not json"),
        ("t.jsonl", b'{"cap": "x"}', "entry 0: needs a key path, file, video or file_name"),
        ("t.jsonl", b'["a.mp4"]', "entry 0: needs a key path"),
        ("t.jsonl", b'{"path": "a.mp4", "cap": "\\ud800"}', "has half of a surrogate pair"),
        ("t.xlsx", b"PK", "t.xlsx: should be a file of .csv, .json, .jsonl"),
        ("a.txt", "caf\xe9".encode("latin-1"), "a.txt: not UTF-8 text"),
        ("a.txt", b"four\0", "a.txt: has a NUL character"),
    ],
)
def test_invalid_files_are_refused_in_one_line(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    table = "" if name == "a.txt" else str(tmp_path / name)
    with pytest.raises(UserError, match=message) as error:
        captions_of(tmp_path, table)
    assert "\n" not in str(error.value) and name in str(error.value)


def test_missing_table_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        captions_of(tmp_path, str(tmp_path / "none.csv"))
