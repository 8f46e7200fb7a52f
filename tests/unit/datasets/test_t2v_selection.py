"""Which samples are trained on, and which of their frames: against the golden cases of the published training code."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from golden_cases import case

from opensora.datasets.sampler import group
from opensora.datasets.t2v import annotations
from opensora.datasets.t2v.index import open_index
from opensora.datasets.t2v.options import T2VDataOptions
from opensora.datasets.t2v.selection import select
from opensora.datasets.temporal_sampling import resampled, sample_frames, usable_length

ROOT = Path(__file__).parents[3]
RNG = np.random.default_rng(0)


def golden(name: str) -> dict:
    return case(name, "training_cases.json")


def options_of(described: dict, **changes) -> T2VDataOptions:
    names = (
        "num_frames",
        "max_height",
        "max_width",
        "max_hxw",
        "min_hxw",
        "hw_stride",
        "force_resolution",
        "sp_size",
        "train_fps",
        "speed_factor",
        "drop_short_ratio",
        "total_batch_size",
        "ae_stride_t",
    )
    return T2VDataOptions(**{"data": "", **{name: described[name] for name in names if name in described}, **changes})


def write_data(folder, items: list):
    (folder / "annotation.json").write_text(json.dumps(items))
    (folder / "merge_data.txt").write_text(f"{folder},{folder / 'annotation.json'}\n")
    return str(folder / "merge_data.txt")


@pytest.mark.parametrize("run", golden("dataset_filter")["runs"], ids=["any resolution", "fixed resolution"])
def test_golden_filter(run, tmp_path):
    data = write_data(tmp_path, golden("dataset_filter")["annotations"])
    index = open_index(options_of(run, data=data, cache_dir=str(tmp_path)))
    buckets = group(index.shape_of, fewest=4 * run["total_batch_size"])
    kept = np.sort(np.concatenate(buckets))
    shapes = [index.shapes[index.shape_of[number]] for number in kept]
    paths = [index.record(number)["path"] for number in kept]
    assert [[path, str(shape), shape.frames] for path, shape in zip(paths, shapes)] == run["kept"]
    renumbered = {
        str(index.shapes[index.shape_of[bucket[0]]]): np.searchsorted(kept, bucket).tolist() for bucket in buckets
    }
    assert renumbered == run["shape_idx"]
    assert len(index) + sum(index.left_out.values()) == len(golden("dataset_filter")["annotations"])


@pytest.mark.parametrize("row", golden("resize_arith")["max_hxw_rows"], ids=lambda row: f"{row['h']}x{row['w']}")
def test_golden_verdicts(row):
    verdicts = {
        "stride": "smaller than hw_stride",
        "small": "fewer pixels than min_hxw",
        "aspect": "too elongated",
        "ok": (1, *row["crop_ijhw"][2:]),
    }
    item = {"path": "a.jpg", "cap": "", "resolution": {"height": row["h"], "width": row["w"]}}
    assert select(item, options_of(row), RNG) == verdicts[row["verdict"]]


@pytest.mark.parametrize(
    "row", golden("resize_arith")["force_resolution_rows"], ids=lambda row: f"{row['h']}x{row['w']}"
)
def test_golden_verdicts_of_a_fixed_size(row):
    item = {"path": "a.jpg", "cap": "", "resolution": {"height": row["h"], "width": row["w"]}}
    selected = select(item, options_of(row, force_resolution=True), RNG)
    assert selected == ((1, row["max_height"], row["max_width"]) if row["kept"] else "too elongated")


def test_golden_lengths():
    for row in golden("resize_arith")["find_closest_y"]:
        length = usable_length(row["x"], 1000, row["vae_stride_t"], row["model_ds_t"])
        assert length == (None if row["y"] == -1 else row["y"]), row


class PublishedDraws:
    """`integers` of a generator by the draw of the published code, which never takes the last window."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def integers(self, high: int) -> int:
        return self.random.randint(0, max(0, high - 2))


@pytest.mark.parametrize("row", golden("frame_index")["rows"], ids=lambda row: f"{row['clip_frames']}-{row['fps']}")
def test_golden_frames(row):
    options = options_of(
        {},
        num_frames=row["num_frames"],
        max_hxw=10_000,
        train_fps=row["train_fps"],
        speed_factor=row["speed"],
        drop_short_ratio=row["drop"],
        sp_size=row["sp"],
    )
    item = {
        "path": "a.mp4",
        "cap": "",
        "resolution": {"height": 64, "width": 96},
        "num_frames": row["clip_frames"],
        "fps": row["fps"],
        "cut": [row["start"], 0],
    }
    selected = select(item, options, RNG)
    if row["frames"] == "IndexError":
        assert selected == "too short"
        return
    assert selected.frames == row["predefine_num_frames"]
    available = resampled(row["start"], row["clip_frames"], row["fps"], row["train_fps"])
    frames = sample_frames(
        available,
        row["num_frames"],
        PublishedDraws(golden("frame_index")["python_random_seed"]),
        row["speed"],
        4,
        row["sp"],
    )
    assert frames.tolist() == row["frames"]


def test_every_window_is_drawn():
    starts = {int(sample_frames(np.arange(31), 29, RNG)[0]) for _ in range(100)}
    assert starts == {0, 1, 2}


@pytest.mark.parametrize(
    "frames, num_frames, expected", [(28, 93, None), (20, 17, 17), (16, 17, None), (5, 1, 1), (0, 1, None)]
)
def test_short_videos_where_short_ones_are_asked_for(frames, num_frames, expected):
    assert usable_length(min(frames, num_frames), num_frames) == expected
    assert usable_length(1, 1, sp_size=8) == 1, "images are not split"


def test_planned_and_read_lengths_agree_at_every_speed():
    """Frames over the wanted number times a factor must not round to one frame fewer."""
    for available in range(93, 300):
        assert len(sample_frames(np.arange(available), 93, RNG, speed_factor=1.7)) == 93


def test_short_videos_are_left_out_by_chance():
    options = options_of({}, num_frames=93, max_hxw=10_000, drop_short_ratio=0.25)
    item = {"path": "a.mp4", "cap": "", "resolution": {"height": 64, "width": 96}, "num_frames": 40, "fps": 24}
    selected = [select(item, options, RNG) for _ in range(1000)]
    assert 200 < selected.count("too short") < 300 and set(selected) == {"too short", (37, 64, 96)}


# The index


def an_image(number: int) -> dict:
    return {
        "path": f"{number}.jpg",
        "cap": ["one", f"caption \u4e2d {number}"],
        "resolution": {"height": 64, "width": 96},
    }


def index_of(tmp_path, items: list, **changes):
    options = options_of(
        {}, data=write_data(tmp_path, items), max_hxw=10_000, cache_dir=str(tmp_path / "cache"), **changes
    )
    return open_index(options), options


def test_the_index_is_made_once(tmp_path):
    index, options = index_of(tmp_path, [an_image(number) for number in range(5)])
    assert index.record(3)["cap"] == ["one", "caption \u4e2d 3"]
    written = (index.folder / "records.jsonl").stat().st_mtime_ns
    again = open_index(options)
    assert (again.folder, (again.folder / "records.jsonl").stat().st_mtime_ns) == (index.folder, written)
    assert open_index(replace(options, cfg=0.5)).folder == index.folder
    assert open_index(replace(options, min_hxw=9_000)).folder != index.folder
    other, _ = index_of(tmp_path, [an_image(number) for number in range(6)])
    assert other.folder != index.folder and len(other) == 6
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_processes_may_race(tmp_path):
    """All get the same index, and one alone has made it."""
    data = write_data(tmp_path, [an_image(number) for number in range(2000)])
    program = (
        "import sys; from opensora.datasets import index; from opensora.datasets.t2v.options import T2VDataOptions\n"
        "made, build = [], index._build\n"
        "index._build = lambda *args: (made.append(1), build(*args))\n"
        "opened = index.open_index(T2VDataOptions(sys.argv[1], max_hxw=10_000, cache_dir=sys.argv[2]))\n"
        "print(len(made), len(opened), opened.record(1999)['path'])"
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


def test_the_table_counts_every_sample(tmp_path):
    items = [an_image(number) for number in range(5)] + [{"path": "x.jpg"}, {**an_image(9), "resolution": None}]
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
    assert index.why_none(6) == (
        "1 no caption, 1 no resolution, 5 of a size with fewer than 6 samples; " + index.faults[0]
    )


def a_video(**changes) -> dict:
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
    ({"path": "a.txt", "cap": "x"}, "a.txt: neither a video .* nor an image"),
    ({"path": "a\0.mp4", "cap": "x"}, "path 'a.x00.mp4': a path cannot have a NUL"),
    ("text", "'text' should be an object"),
    ([1], r"\[1\] should be an object"),
    (None, "None should be an object"),
    (a_video(cap=7), "cap 7: should be a text or a list"),
    (a_video(cap=[]), "cap .*: should be a text or a list"),
    (a_video(cap={"short": "a"}), "cap .*: should be a text"),
    (a_video(cap=["a", None]), "cap .*: should be a text"),
    (a_video(cap="half \ud83d"), r"cap 'half .ud83d': has half of a surrogate pair"),
    (a_video(resolution=[64, 96]), r"resolution \[64, 96\]: should be {.height"),
    (a_video(resolution="64x96"), "resolution '64x96': should be"),
    (a_video(resolution={"height": "x", "width": 96}), "resolution: height 'x': should be a whole number"),
    (a_video(resolution={"height": 64.5, "width": 96}), "resolution: height 64.5: should be a whole number"),
    (a_video(resolution={"height": True, "width": 96}), "resolution: height True: should be"),
    (a_video(resolution={"height": -64, "width": 96}), "resolution: height -64: should be"),
    (a_video(num_frames=float("nan")), "num_frames nan: should be"),
    (a_video(num_frames=1e30), "num_frames 1e.30"),
    (a_video(num_frames=10**400), "num_frames inf: should be"),
    (a_video(num_frames=-3), "num_frames -3"),
    (a_video(num_frames="many"), "num_frames 'many'"),
    (a_video(num_frames=10**30), "num_frames 1000"),
    (a_video(fps=float("inf")), "fps inf: should be a number from 0.01 to 1000"),
    (a_video(fps="24/0"), "fps '24/0'"),
    (a_video(fps=float("nan")), "fps nan"),
    (a_video(fps=-24), "fps -24"),
    (a_video(fps=True), "fps True"),
    (a_video(fps=5e-324, frame_idx="0:9"), "fps 5e-324"),
    (a_video(aesthetic=float("inf")), "aesthetic inf"),
    (a_video(aes=1e30), "aes 1e.30"),
    (a_video(aesthetic="good"), "aesthetic 'good'"),
    (a_video(cut="0:9"), "cut '0:9': should be"),
    (a_video(cut=[float("nan"), 9]), "cut nan"),
    (a_video(frame_idx="9:3"), "frame_idx '9:3': there are no frames"),
    (a_video(frame_idx="0"), "frame_idx '0': should be"),
    (a_video(frame_idx="a:b"), "frame_idx 'a'"),
    (a_video(crop=[0, 8]), "crop .*: should be .left"),
    (a_video(crop=[0, 1e30, 0, 8]), "crop 1e.30"),
]


@pytest.mark.parametrize("item, message", FAULTS, ids=[str(number) for number in range(len(FAULTS))])
def test_faulty_entries(tmp_path, item, message):
    with pytest.raises(ValueError, match=f"none of 1 entries can be used; .*annotation.json: entry 0: .*{message}"):
        index_of(tmp_path, [item])
    assert not list((tmp_path / "cache/dataset_index").glob("*.part")), "nothing half-written"


def test_faulty_entries_are_counted_and_left_out(tmp_path):
    items = [an_image(number) for number in range(20)]
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
def test_numbers_as_people_write_them(tmp_path, changes, expected):
    index, _ = index_of(tmp_path, [a_video(**changes)], num_frames=29)
    record = index.record(0)
    assert index.shapes == [(29, 64, 96)]
    plain = {"source": 0, "path": "a.mp4", "cap": "x", "start": 0, "num_frames": 93, "fps": 24.0}
    assert record == {**plain, **{key: value for key, value in changes.items() if key == "cap"}, **expected}


def test_a_damaged_index_is_made_again(tmp_path):
    items = [an_image(number) for number in range(5)]
    index, options = index_of(tmp_path, items)
    for name, content in {
        "summary.json": b"{",
        "records.jsonl": b"{}\n",
        "offsets.npy": b"",
        "shapes.npy": b"x",
    }.items():
        (index.folder / name).write_bytes(content)
        assert open_index(options).record(4)["path"] == "4.jpg"


# Files of annotations


@pytest.mark.parametrize("chunk", [7, 100, 1 << 20])
@pytest.mark.parametrize("form", ["list", "indented", "lines"])
def test_annotations_are_read_in_pieces(tmp_path, monkeypatch, chunk, form):
    monkeypatch.setattr(annotations, "CHUNK", chunk)
    items = [an_image(number) for number in range(7)]
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
def test_damaged_annotations(tmp_path, text, message):
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
def test_all_of_an_annotation_file_is_read(tmp_path, text, expected):
    (tmp_path / "a.json").write_bytes(text.encode())
    assert list(annotations.read_items(tmp_path / "a.json")) == expected


def test_a_damaged_line_costs_one_entry(tmp_path):
    lines = [json.dumps(an_image(number)) for number in range(4)]
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
def test_annotations_in_another_encoding(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.json: not UTF-8 text; convert it.*{message}"):
        list(annotations.read_items(tmp_path / "a.json"))
    (tmp_path / "merge_data.txt").write_bytes(content)
    with pytest.raises(ValueError, match="merge_data.txt: not UTF-8 text"):
        annotations.read_data_file(tmp_path / "merge_data.txt")


def test_the_data_file(tmp_path):
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
        ("# nothing", ValueError, "names no annotation file"),
    ],
)
def test_faulty_data_files(tmp_path, line, error, message):
    (tmp_path / "merge_data.txt").write_text(line)
    with pytest.raises(error, match=message):
        annotations.read_data_file(tmp_path / "merge_data.txt")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_frames": 30}, "num_frames 30"),
        ({"sp_size": 2}, "17 latent frames"),
        ({"max_hxw": None}, "give max_hxw"),
        ({"min_hxw": 20_000}, "min_hxw 20000, max_hxw 10000"),
        ({"cfg": 1.5}, "cfg 1.5"),
        ({"speed_factor": 0.5}, "speed_factor 0.5"),
        ({"speed_factor": float("nan")}, "speed_factor nan"),
        ({"cfg": float("nan")}, "cfg nan"),
        ({"hw_stride": 12}, "hw_stride 12"),
        ({"force_resolution": True, "max_height": 100}, "100, 240: should be multiples of 8"),
    ],
)
def test_faulty_options(changes, message):
    with pytest.raises(ValueError, match=message):
        options_of({}, **{"max_hxw": 10_000, **changes})
