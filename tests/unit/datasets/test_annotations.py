"""Reading data files and annotation files."""

from __future__ import annotations

import json

import pytest
from made_clips import image_entry

from opensora.datasets.t2v import annotations


@pytest.mark.parametrize("chunk", [7, 100, 1 << 20])
@pytest.mark.parametrize("form", ["list", "indented", "lines"])
def test_annotations_are_read_in_chunks(tmp_path, monkeypatch, chunk, form):
    monkeypatch.setattr(annotations, "CHUNK", chunk)
    items = [image_entry(number) for number in range(7)]
    file = tmp_path / "annotation.json"
    file.write_text(
        "\n".join(map(json.dumps, items))
        if form == "lines"
        else json.dumps(items, indent=2 if form == "indented" else None, ensure_ascii=False),
        encoding="utf-8",
    )
    sizes = []
    assert list(annotations.read_items(file, sizes.append)) == items
    assert sum(sizes) == file.stat().st_size


@pytest.mark.parametrize(
    "text, message",
    [
        ('[{"path": "a"}, {"pa', "after 1 objects"),
        ('[{"path": "a"}', "after 1 objects"),
        ("no json", "after 0 objects"),
        ('[{"path": "a"} x]', "after 1 objects"),
        ('[{"path": "a"}] }, {', "after 1 objects"),
        ('[{"path": "a"}]\n{"pa', "after 1 objects"),
        ("[" * 200_000, "after 0 objects: nested too deeply"),
        ('{"a":' * 200_000, "after 0 objects: nested too deeply"),
        ('[{"a": ' + "1" * 5000, "after 0 objects"),
    ],
)
def test_invalid_annotations_are_rejected(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=f"a.json: {message}"):
        list(annotations.read_items(tmp_path / "a.json"))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("[1]\n[2, 3]\n", [1, 2, 3]),
        ("[1], [2]", [1, 2]),
        ('[{"a": 1}]\n{"b": 2}\n', [{"a": 1}, {"b": 2}]),
        ('\ufeff{"a": 1}\r\n\r\n{"b": 2}\r\n', [{"a": 1}, {"b": 2}]),
        ("\ufeff[7]", [7]),
        ("[]", []),
        ("", []),
        ("[[1], 7]", [[1], 7]),
    ],
)
def test_all_entries_are_read(tmp_path, text, expected):
    (tmp_path / "a.json").write_bytes(text.encode())
    assert list(annotations.read_items(tmp_path / "a.json")) == expected


def test_invalid_line_costs_one_entry(tmp_path):
    lines = [json.dumps(image_entry(number)) for number in range(4)]
    lines[1], lines[2] = lines[1][:20], "[" * 200_000
    (tmp_path / "a.json").write_text("\n".join(lines))
    first, damaged, last = list(annotations.read_items(tmp_path / "a.json"))
    assert (first["path"], last["path"]) == ("0.jpg", "3.jpg") and "not json" in damaged.reason


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\x80\x04\x95", "iconv -f GBK"),
        ('[{"cap": "\u4e2d\u6587"}]'.encode("gbk"), "iconv -f GBK"),
        ("[]".encode("utf-16"), "iconv -f UTF-16"),
        ("[]".encode("utf-16-le"), "iconv -f UTF-16"),
        ("[]".encode("utf-32"), "iconv -f UTF-16"),
    ],
)
def test_other_encodings_are_rejected(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.json: not UTF-8 text; convert it.*{message}"):
        list(annotations.read_items(tmp_path / "a.json"))
    (tmp_path / "merge_data.txt").write_bytes(content)
    with pytest.raises(ValueError, match="merge_data.txt: not UTF-8 text"):
        annotations.read_data_file(tmp_path / "merge_data.txt")


def test_data_file_is_read(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    data = tmp_path / "merge_data.txt"
    text = f"videos,{tmp_path}/a.json\r\n\r\n# two sources\r\nvideos, embeddings ,{tmp_path}/a.json\r\n"
    data.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [(source.root, source.embedding_root) for source in annotations.read_data_file(data)] == [
        ("videos", None),
        ("videos", "embeddings"),
    ]


@pytest.mark.parametrize(
    "line, error, message",
    [
        ("videos", ValueError, "line 1: 'videos' should be"),
        ("videos,missing.json", FileNotFoundError, "missing.json: no such file"),
        ("videos,list.pkl", ValueError, "a pickle, which can run code"),
        ("# nothing", ValueError, "lists no annotation file"),
    ],
)
def test_invalid_data_file_is_rejected(tmp_path, line, error, message):
    (tmp_path / "merge_data.txt").write_text(line)
    with pytest.raises(error, match=message):
        annotations.read_data_file(tmp_path / "merge_data.txt")
