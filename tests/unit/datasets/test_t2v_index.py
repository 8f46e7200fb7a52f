"""The index of selected samples: built once, faulty entries excluded and counted."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from made_clips import image_entry, write_data_file
from processes import ROOT

from opensora.datasets.t2v.index import open_index
from opensora.datasets.t2v.options import T2VDataOptions


def index_of(tmp_path, items: list, **changes):
    data = str(write_data_file(tmp_path, items))
    options = T2VDataOptions(data, max_hxw=10_000, cache_dir=str(tmp_path / "cache"), **changes)
    return open_index(options), options


def test_index_is_built_once(tmp_path):
    index, options = index_of(tmp_path, [image_entry(number) for number in range(5)])
    assert index.record(3)["cap"] == ["one", "caption \u4e2d 3"]
    written = (index.folder / "records.jsonl").stat().st_mtime_ns
    again = open_index(options)
    assert (again.folder, (again.folder / "records.jsonl").stat().st_mtime_ns) == (index.folder, written)
    assert open_index(replace(options, cfg=0.5)).folder == index.folder
    assert open_index(replace(options, min_hxw=9_000)).folder != index.folder
    other, _ = index_of(tmp_path, [image_entry(number) for number in range(6)])
    assert other.folder != index.folder and len(other) == 6
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_concurrent_processes_build_one_index(tmp_path):
    """All get the same index, and only one of them builds it."""
    data = write_data_file(tmp_path, [image_entry(number) for number in range(2000)])
    program = (
        "import sys\nfrom opensora.datasets.t2v import index\n"
        "from opensora.datasets.t2v.options import T2VDataOptions\n"
        "built, build = [], index._build\n"
        "index._build = lambda *args: (built.append(1), build(*args))\n"
        "opened = index.open_index(T2VDataOptions(sys.argv[1], max_hxw=10_000, cache_dir=sys.argv[2]))\n"
        "print(len(built), len(opened), opened.record(1999)['path'])"
    )
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, data, str(tmp_path / "cache")], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    answers = [process.communicate(timeout=60)[0].split() for process in running]
    assert sorted(answer[0] for answer in answers) == ["0", "0", "1"]
    assert all(answer[1:] == ["2000", "1999.jpg"] for answer in answers)


def test_table_counts_every_sample(tmp_path):
    items = [image_entry(number) for number in range(5)] + [{"path": "x.jpg"}, {**image_entry(9), "resolution": None}]
    index, _ = index_of(tmp_path, items)
    rows = [row.rsplit(None, 1) for row in index.table(4).splitlines()]
    assert [(name.strip(), count) for name, count in rows[:-1]] == [
        ("samples annotated", "7"),
        ("left out: no caption", "1"),
        ("left out: no resolution", "1"),
        ("samples used", "5"),
        ("1x64x96", "5"),
    ]
    assert "cannot be read: " in rows[-1][0] and "annotation.json: entry 6: " in rows[-1][0]
    assert index.explain_exclusions(6) == (
        "1 no caption, 1 no resolution, 5 of a size with fewer than 6 samples; " + index.faults[0]
    )


def video_entry(**changes) -> dict:
    return {
        "path": "a.mp4",
        "cap": "x",
        "resolution": {"height": 64, "width": 96},
        "num_frames": 93,
        "fps": 24,
        **changes,
    }


FAULTS = [
    ({"cap": "no path"}, "has no `path`"),
    ({"path": "a.txt", "cap": "x"}, "a.txt: the suffix is neither that of a video .* nor that of an image"),
    ({"path": "a\0.mp4", "cap": "x"}, "path 'a.x00.mp4': a path cannot contain a NUL"),
    ("text", "'text' should be an object"),
    ([1], r"\[1\] should be an object"),
    (None, "None should be an object"),
    (video_entry(cap=7), "cap 7: should be a text or a list"),
    (video_entry(cap=[]), "cap .*: should be a text or a list"),
    (video_entry(cap={"short": "a"}), "cap .*: should be a text"),
    (video_entry(cap=["a", None]), "cap .*: should be a text"),
    (video_entry(cap="half \ud83d"), r"cap 'half .ud83d': has half of a surrogate pair"),
    (video_entry(resolution=[64, 96]), r"resolution \[64, 96\]: should be {.height"),
    (video_entry(resolution="64x96"), "resolution '64x96': should be"),
    (video_entry(resolution={"height": "x", "width": 96}), "resolution: height 'x': should be a whole number"),
    (video_entry(resolution={"height": 64.5, "width": 96}), "resolution: height 64.5: should be a whole number"),
    (video_entry(resolution={"height": True, "width": 96}), "resolution: height True: should be"),
    (video_entry(resolution={"height": -64, "width": 96}), "resolution: height -64: should be"),
    (video_entry(num_frames=float("nan")), "num_frames nan: should be"),
    (video_entry(num_frames=1e30), "num_frames 1e.30"),
    (video_entry(num_frames=10**400), "num_frames inf: should be"),
    (video_entry(num_frames=-3), "num_frames -3"),
    (video_entry(num_frames="many"), "num_frames 'many'"),
    (video_entry(num_frames=10**30), "num_frames 1000"),
    (video_entry(fps=float("inf")), "fps inf: should be a number from 0.01 to 1000"),
    (video_entry(fps="24/0"), "fps '24/0'"),
    (video_entry(fps=float("nan")), "fps nan"),
    (video_entry(fps=-24), "fps -24"),
    (video_entry(fps=True), "fps True"),
    (video_entry(fps=5e-324, frame_idx="0:9"), "fps 5e-324"),
    (video_entry(aesthetic=float("inf")), "aesthetic inf"),
    (video_entry(aes=1e30), "aes 1e.30"),
    (video_entry(aesthetic="good"), "aesthetic 'good'"),
    (video_entry(cut="0:9"), "cut '0:9': should be"),
    (video_entry(cut=[float("nan"), 9]), "cut nan"),
    (video_entry(frame_idx="9:3"), "frame_idx '9:3': the range is empty"),
    (video_entry(frame_idx="0"), "frame_idx '0': should be"),
    (video_entry(frame_idx="a:b"), "frame_idx 'a'"),
    (video_entry(crop=[0, 8]), "crop .*: should be .left"),
    (video_entry(crop=[0, 1e30, 0, 8]), "crop 1e.30"),
]


@pytest.mark.parametrize("item, message", FAULTS, ids=[str(number) for number in range(len(FAULTS))])
def test_faulty_entry_is_reported(tmp_path, item, message):
    with pytest.raises(ValueError, match=f"none of 1 entries can be used; .*annotation.json: entry 0: .*{message}"):
        index_of(tmp_path, [item])
    assert not list((tmp_path / "cache/dataset_index").glob("*.part")), "no incomplete index"


def test_faulty_entries_are_excluded_and_counted(tmp_path):
    items = [image_entry(number) for number in range(20)]
    for place in range(0, 30, 2):
        items.insert(place, FAULTS[place][0])
    index, _ = index_of(tmp_path, items)
    assert len(index) == 20 and index.left_out["faulty entry"] == 15 and len(index.faults) == 10
    assert [index.record(number)["path"] for number in range(20)] == [f"{number}.jpg" for number in range(20)]
    assert "entry 2: path 'a\\x00.mp4'" in index.faults[1] and all(map(str.isprintable, index.faults))
    assert "left out: faulty entry" in index.table(1) and index.faults[9] in index.table(1)


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({"num_frames": "93"}, {"num_frames": 93}),
        ({"num_frames": 93.0}, {"num_frames": 93}),
        ({"fps": "24000/1001"}, {"fps": 24000 / 1001}),
        ({"fps": " 25 "}, {"fps": 25}),
        ({"resolution": {"height": "64", "width": 96.0}}, {}),
        ({"aesthetic": float("nan"), "aes": 5}, {"aes": 5.0}),
        ({"aesthetic": "6.5"}, {"aes": 6.5}),
        ({"aesthetic": 0}, {"aes": 0.0}),
        ({"aesthetic": float("nan")}, {}),
        ({"num_frames": None, "cut": [10, 103]}, {"num_frames": 93, "start": 10}),
        ({"cut": [3]}, {"start": 3}),
        ({"num_frames": None, "frame_idx": "7:100"}, {"num_frames": 93, "start": 7}),
        ({"num_frames": 50, "frame_idx": [0, 93]}, {"num_frames": 50}),
        ({"cap": "\x00 \x1b[0m \ufeff"}, {}),
        ({"num_frames": None, "frame_idx": "0:100000"}, {"num_frames": 145}),
    ],
)
def test_number_formats_are_accepted(tmp_path, changes, expected):
    index, _ = index_of(tmp_path, [video_entry(**changes)], num_frames=29)
    record = index.record(0)
    assert index.shapes == [(29, 64, 96)]
    plain = {"source": 0, "path": "a.mp4", "cap": "x", "start": 0, "num_frames": 93, "fps": 24.0}
    assert record == {**plain, **{key: value for key, value in changes.items() if key == "cap"}, **expected}


def test_damaged_index_is_rebuilt(tmp_path):
    items = [image_entry(number) for number in range(5)]
    index, options = index_of(tmp_path, items)
    for name, content in {
        "summary.json": b"{",
        "records.jsonl": b"{}\n",
        "offsets.npy": b"",
        "shapes.npy": b"x",
    }.items():
        (index.folder / name).write_bytes(content)
        assert open_index(options).record(4)["path"] == "4.jpg"
