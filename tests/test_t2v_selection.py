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

from opensora.datasets import annotations
from opensora.datasets.frames import resampled, sample_frames, usable_length
from opensora.datasets.index import open_index
from opensora.datasets.options import T2VDataOptions
from opensora.datasets.sampler import group
from opensora.datasets.selection import select

ROOT = Path(__file__).parents[1]
RNG = np.random.default_rng(0)


def golden(name: str) -> dict:
    return case(name, "training_cases.json")


def options_of(described: dict, **changes) -> T2VDataOptions:
    names = ("num_frames", "max_height", "max_width", "max_hxw", "min_hxw", "hw_stride", "force_resolution", "sp_size",
             "train_fps", "speed_factor", "drop_short_ratio", "total_batch_size", "ae_stride_t")
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
    renumbered = {str(index.shapes[index.shape_of[bucket[0]]]): np.searchsorted(kept, bucket).tolist()
                  for bucket in buckets}
    assert renumbered == run["shape_idx"]
    assert len(index) + sum(index.left_out.values()) == len(golden("dataset_filter")["annotations"])


@pytest.mark.parametrize("row", golden("resize_arith")["max_hxw_rows"], ids=lambda row: f"{row['h']}x{row['w']}")
def test_golden_verdicts(row):
    verdicts = {"stride": "smaller than hw_stride", "small": "fewer pixels than min_hxw", "aspect": "too elongated",
                "ok": (1, *row["crop_ijhw"][2:])}
    item = {"path": "a.jpg", "cap": "", "resolution": {"height": row["h"], "width": row["w"]}}
    assert select(item, options_of(row), RNG) == verdicts[row["verdict"]]


@pytest.mark.parametrize("row", golden("resize_arith")["force_resolution_rows"],
                         ids=lambda row: f"{row['h']}x{row['w']}")
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
    options = options_of({}, num_frames=row["num_frames"], max_hxw=10_000, train_fps=row["train_fps"],
                         speed_factor=row["speed"], drop_short_ratio=row["drop"], sp_size=row["sp"])
    item = {"path": "a.mp4", "cap": "", "resolution": {"height": 64, "width": 96}, "num_frames": row["clip_frames"],
            "fps": row["fps"], "cut": [row["start"], 0]}
    selected = select(item, options, RNG)
    if row["frames"] == "IndexError":
        assert selected == "too short"
        return
    assert selected.frames == row["predefine_num_frames"]
    available = resampled(row["start"], row["clip_frames"], row["fps"], row["train_fps"])
    frames = sample_frames(available, row["num_frames"], PublishedDraws(golden("frame_index")["python_random_seed"]),
                           row["speed"], 4, row["sp"])
    assert frames.tolist() == row["frames"]


def test_every_window_is_drawn():
    starts = {int(sample_frames(np.arange(31), 29, RNG)[0]) for _ in range(100)}
    assert starts == {0, 1, 2}


@pytest.mark.parametrize("frames, num_frames, expected", [
    (28, 93, None), (20, 17, 17), (16, 17, None), (5, 1, 1), (0, 1, None)])
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
    return {"path": f"{number}.jpg", "cap": ["one", f"caption \u4e2d {number}"],
            "resolution": {"height": 64, "width": 96}}


def index_of(tmp_path, items: list):
    options = options_of({}, data=write_data(tmp_path, items), max_hxw=10_000, cache_dir=str(tmp_path / "cache"))
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
    program = ("import sys; from opensora.datasets import index; from opensora.datasets.options import T2VDataOptions\n"
               "made, build = [], index._build\n"
               "index._build = lambda *args: (made.append(1), build(*args))\n"
               "opened = index.open_index(T2VDataOptions(sys.argv[1], max_hxw=10_000, cache_dir=sys.argv[2]))\n"
               "print(len(made), len(opened), opened.record(1999)['path'])")
    running = [subprocess.Popen([sys.executable, "-c", program, data, str(tmp_path / "cache")], cwd=ROOT,
                                stdout=subprocess.PIPE, text=True) for _ in range(3)]
    answers = [process.communicate(timeout=60)[0].split() for process in running]
    assert sorted(answer[0] for answer in answers) == ["0", "0", "1"]
    assert all(answer[1:] == ["2000", "1999.jpg"] for answer in answers)


def test_the_table_counts_every_sample(tmp_path):
    items = [an_image(number) for number in range(5)] + [{"path": "x.jpg"}, {**an_image(9), "resolution": None}]
    index, _ = index_of(tmp_path, items)
    rows = [row.rsplit(None, 1) for row in index.table(4).splitlines()]
    assert [(name.strip(), count) for name, count in rows] == [
        ("samples annotated", "7"), ("no caption", "-1"), ("no resolution", "-1"), ("samples used", "5"),
        ("1x64x96", "5")]


@pytest.mark.parametrize("item, message", [
    ({"cap": "no path"}, "entry 1: .*has no `path`"),
    ({"path": "a.txt", "cap": "x"}, "entry 1: a.txt: neither a video .* nor an image"),
    ({**an_image(0), "cap": 7}, "entry 1: "), ({**an_image(0), "cap": []}, "`cap` should be a text or a list"),
    ({**an_image(0), "resolution": {"height": "64", "width": 96}}, "entry 1: "),
    ("text", "object 1 is 'text'; a sample should be an object")])
def test_faulty_annotations(tmp_path, item, message):
    with pytest.raises(ValueError, match=message):
        index_of(tmp_path, [an_image(0), item])
    assert not list((tmp_path / "cache/dataset_index").glob("*.part")), "nothing half-written"


# Files of annotations

@pytest.mark.parametrize("chunk", [7, 100, 1 << 20])
@pytest.mark.parametrize("form", ["list", "indented", "lines"])
def test_annotations_are_read_in_pieces(tmp_path, monkeypatch, chunk, form):
    monkeypatch.setattr(annotations, "CHUNK", chunk)
    items = [an_image(number) for number in range(7)]
    file = tmp_path / "annotation.json"
    file.write_text("\n".join(map(json.dumps, items)) if form == "lines" else
                    json.dumps(items, indent=2 if form == "indented" else None, ensure_ascii=False), encoding="utf-8")
    sizes = []
    assert list(annotations.read_items(file, sizes.append)) == items
    assert sum(sizes) == file.stat().st_size


@pytest.mark.parametrize("text, message", [
    ('[{"path": "a"}, {"pa', "after 1 objects"), ('[{"path": "a"}', "after 1 objects"), ("no json", "after 0 objects"),
    ('[{"path": "a"} x]', "after 1 objects"), ("[7]", "object 0 is 7")])
def test_damaged_annotations(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=f"a.json: {message}"):
        list(annotations.read_items(tmp_path / "a.json"))


def test_binary_annotations(tmp_path):
    (tmp_path / "a.json").write_bytes(b"\x80\x04\x95")
    with pytest.raises(ValueError, match="a.json: not a text file"):
        list(annotations.read_items(tmp_path / "a.json"))


def test_the_data_file(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    data = tmp_path / "merge_data.txt"
    data.write_text(f"# two sources\n\nvideos,{tmp_path}/a.json\nvideos, embeddings ,{tmp_path}/a.json\n")
    assert [(source.root, source.embedding_root) for source in annotations.read_data_file(data)] == [
        ("videos", None), ("videos", "embeddings")]


@pytest.mark.parametrize("line, error, message", [
    ("videos", ValueError, "line 1: 'videos' should be"),
    ("videos,missing.json", FileNotFoundError, "missing.json: no such file"),
    ("videos,list.pkl", ValueError, "a pickle, which can run code"),
    ("# nothing", ValueError, "names no annotation file")])
def test_faulty_data_files(tmp_path, line, error, message):
    (tmp_path / "merge_data.txt").write_text(line)
    with pytest.raises(error, match=message):
        annotations.read_data_file(tmp_path / "merge_data.txt")


@pytest.mark.parametrize("changes, message", [
    ({"num_frames": 30}, "num_frames 30"), ({"sp_size": 2}, "17 latent frames"), ({"max_hxw": None}, "give max_hxw"),
    ({"min_hxw": 20_000}, "min_hxw 20000, max_hxw 10000"), ({"cfg": 1.5}, "cfg 1.5"),
    ({"speed_factor": 0.5}, "speed_factor 0.5"), ({"hw_stride": 12}, "hw_stride 12"),
    ({"force_resolution": True, "max_height": 100}, "100, 240: should be multiples of 8")])
def test_faulty_options(changes, message):
    with pytest.raises(ValueError, match=message):
        options_of({}, **{"max_hxw": 10_000, **changes})
