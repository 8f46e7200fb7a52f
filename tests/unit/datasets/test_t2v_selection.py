"""Which samples are trained on, and which of their frames: golden cases of the published training code."""

from __future__ import annotations

import random

import numpy as np
import pytest
from golden_cases import case
from made_clips import write_data_file

from opensora.datasets.sampler import group
from opensora.datasets.t2v.index import open_index
from opensora.datasets.t2v.options import T2VDataOptions
from opensora.datasets.t2v.selection import select
from opensora.datasets.temporal_sampling import resample, sample_frames, usable_length

RNG = np.random.default_rng(0)


def golden(name: str) -> dict:
    return case(name, "training_cases.json")


def options_of(described: dict, **changes) -> T2VDataOptions:
    names = (
        "num_frames max_height max_width max_hxw min_hxw hw_stride force_resolution sp_size train_fps speed_factor "
        "drop_short_ratio total_batch_size ae_stride_t"
    ).split()
    return T2VDataOptions(**{"data": "", **{name: described[name] for name in names if name in described}, **changes})


@pytest.mark.parametrize("run", golden("dataset_filter")["runs"], ids=["any resolution", "fixed resolution"])
def test_golden_selection(run, tmp_path):
    data = str(write_data_file(tmp_path, golden("dataset_filter")["annotations"]))
    index = open_index(options_of(run, data=data, cache_dir=str(tmp_path)))
    buckets = group(index.shape_of, min_size=4 * run["total_batch_size"])
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
def test_golden_sizes(row):
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
def test_golden_sizes_with_force_resolution(row):
    item = {"path": "a.jpg", "cap": "", "resolution": {"height": row["h"], "width": row["w"]}}
    selected = select(item, options_of(row, force_resolution=True), RNG)
    assert selected == ((1, row["max_height"], row["max_width"]) if row["kept"] else "too elongated")


def test_golden_lengths():
    for row in golden("resize_arith")["find_closest_y"]:
        length = usable_length(row["x"], 1000, row["vae_stride_t"], row["model_ds_t"])
        assert length == (None if row["y"] == -1 else row["y"]), row


class PublishedDraws:
    """`integers` as drawn by the published code, which never returns the last start."""

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
    available = resample(row["start"], row["clip_frames"], row["fps"], row["train_fps"])
    frames = sample_frames(
        available,
        row["num_frames"],
        PublishedDraws(golden("frame_index")["python_random_seed"]),
        row["speed"],
        4,
        row["sp"],
    )
    assert frames.tolist() == row["frames"]


def test_every_start_is_drawn():
    starts = {int(sample_frames(np.arange(31), 29, RNG)[0]) for _ in range(100)}
    assert starts == {0, 1, 2}


@pytest.mark.parametrize(
    "frames, num_frames, expected", [(28, 93, None), (20, 17, 17), (16, 17, None), (5, 1, 1), (0, 1, None)]
)
def test_short_lengths_are_usable_if_requested(frames, num_frames, expected):
    assert usable_length(min(frames, num_frames), num_frames) == expected
    assert usable_length(1, 1, sp_size=8) == 1, "images are not split"


def test_length_is_exact_at_any_speed():
    """Rounding in the speed-up must not lose a frame."""
    for available in range(93, 300):
        assert len(sample_frames(np.arange(available), 93, RNG, speed_factor=1.7)) == 93


def test_short_videos_are_excluded_at_random():
    options = options_of({}, num_frames=93, max_hxw=10_000, drop_short_ratio=0.25)
    item = {"path": "a.mp4", "cap": "", "resolution": {"height": 64, "width": 96}, "num_frames": 40, "fps": 24}
    selected = [select(item, options, RNG) for _ in range(1000)]
    assert 200 < selected.count("too short") < 300 and set(selected) == {"too short", (37, 64, 96)}


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
def test_invalid_options_are_rejected(changes, message):
    with pytest.raises(ValueError, match=message):
        options_of({}, **{"max_hxw": 10_000, **changes})
