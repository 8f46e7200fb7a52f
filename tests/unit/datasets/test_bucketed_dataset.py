"""Data of the config-driven workflows: tables, shapes of samples, replaced samples, the loader."""

from __future__ import annotations

import csv
import random
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from golden_cases import case
from made_clips import moving_square
from PIL import Image

from opensora.datasets.bucketed import report as bucket_report
from opensora.datasets.bucketed.buckets import Buckets
from opensora.datasets.bucketed.dataset import VariableVideoTextDataset, VideoTextDataset, collate
from opensora.datasets.bucketed.resize import TRANSFORMS, bilinear
from opensora.datasets.bucketed.sampler import BucketSample, BucketSampler
from opensora.datasets.bucketed.table import read_table
from opensora.datasets.loader import Loader
from opensora.datasets.media import read_image, save_image, write_video
from opensora.datasets.temporal_sampling import last_start, temporal_crop
from opensora.utils import text_files

# Small sizes of the 144p table.
BUCKETS = {"144p": {8: (1.0, 2), 1: (1.0, 2)}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Six videos, two of them in portrait format, and four images; data.csv lists them."""
    folder = tmp_path_factory.mktemp("variable")
    rows = []
    for number in range(6):
        size = (256, 144) if number > 3 else (144, 256)
        with write_video(folder / f"{number}.mp4", 12) as write:
            write(moving_square(20, *size, (200, 30, 40)))
        rows.append([folder / f"{number}.mp4", f"A square, {number}.", 20, *size])
    for number in range(4):
        save_image(folder / f"{number}.png", moving_square(1, 160, 260, (30, 200, 40))[0])
        rows.append([folder / f"{number}.png", f"An image, {number}.", 1, 160, 260])
    write_table(folder / "data.csv", rows)
    return folder


def write_table(path: Path, rows: list, columns=("path", "text", "num_frames", "height", "width")) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])
    return path


def make_dataset(folder: Path, table: str = "data.csv", **more) -> VariableVideoTextDataset:
    return VariableVideoTextDataset(str(folder / table), frame_interval=2, cache_dir=str(folder / "cache"), **more)


@pytest.mark.parametrize("row", case("temporal_crop", "opensora_cases.json")["cases"], ids=lambda row: str(row["seed"]))
def test_golden_temporal_crop(row):
    random.seed(row["seed"])
    shape = row["total"], row["num_frames"], row["frame_interval"]
    start = random.randint(0, last_start(*shape))
    if "error" in row:
        with pytest.raises(ValueError, match="15 frames remain for a clip of 16"):
            temporal_crop(start, *shape)
    else:
        assert temporal_crop(start, *shape).tolist() == row["ok"]


def test_bilinear_interpolates_without_antialiasing():
    """Midpoints are means, edges repeat, and a ramp stays linear."""
    assert bilinear(np.array([[0, 90]], np.uint8), 1, 4).tolist() == [[0, 22.5, 67.5, 90]]
    ramp = bilinear(np.arange(0, 80, 10, dtype=np.uint8)[:, None], 16, 1)[:, 0]
    assert np.allclose(np.diff(ramp[1:-1]), 5)
    # Without antialiasing, scaling by 1/3 samples every third pixel.
    stripes = np.tile(np.array([0, 255, 0], np.uint8), 5)[None]
    assert bilinear(stripes, 1, 5).tolist() == [[255] * 5]
    # A scale that is not the ratio of the sizes: 3 pixels at 1.5 give 4.
    assert np.allclose(bilinear(np.array([[0, 60, 120]], np.uint8), 1, 4, scale=1.5), [[0, 30, 70, 110]])


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("size", [(90, 51), (40, 86), (64, 64)])
def test_center_stays_in_the_center(name, size):
    """A cross in the center of the frame is in the center of the sample."""
    frame = np.zeros((*size, 3), np.uint8)
    frame[size[0] // 2 - 4 : size[0] // 2 + 4] = 255
    frame[:, size[1] // 2 - 4 : size[1] // 2 + 4] = 255
    video, image = (fit(pixels, 32, 32) for fit, pixels in zip(TRANSFORMS[name], (frame[None], frame)))
    assert video.shape == (1, 3, 32, 32) and image.shape == (3, 32, 32) and image.dtype == np.uint8
    for pixels in (video[0], image):
        weights = pixels[0].astype(float)
        for axis in (0, 1):
            assert abs(np.average(np.arange(32), weights=weights.sum(axis)) - 15.5) < 1


def test_items_have_the_shape_of_their_bucket(folder):
    dataset = make_dataset(folder)
    buckets = Buckets(BUCKETS)
    assigned = buckets.assign(dataset.shapes, 2)
    assert [buckets.shape(number) for number in assigned[[0, 5, 6]]] == [(8, 144, 256), (8, 256, 144), (1, 151, 241)]
    item = dataset.item(BucketSample(5, 8, 256, 144), np.random.default_rng(0))
    assert item["video"].shape == (3, 8, 256, 144) and item["video"].dtype == np.float32
    assert item["text"] == "A square, 5." and item["replaced"] == 0
    assert (item["num_frames"], item["height"], item["width"]) == (8, 256, 144)
    assert item["ar"] == pytest.approx(256 / 144) and item["fps"] == 12
    # The background brightens by 6 levels per frame; the first and last frame of the clip are 15 frames apart.
    background = item["video"][0, :, 4, 4] * 127.5
    assert (np.diff(background) > 8).all() and background[-1] - background[0] == pytest.approx(90, abs=4)
    image = dataset.item(BucketSample(6, 1, 151, 241), np.random.default_rng(0))
    assert image["video"].shape == (3, 1, 151, 241) and image["fps"] == 120
    halved = make_dataset(folder, divide_fps=True).item(BucketSample(5, 8, 256, 144), np.random.default_rng(0))
    assert halved["fps"] == 6


def test_video_text_dataset_has_one_shape(folder):
    dataset = VideoTextDataset(str(folder / "data.csv"), 4, 1, (64, 64), cache_dir=str(folder / "cache"))
    batch = collate([dataset.item(np.int64(index), np.random.default_rng(0)) for index in (0, 6)])
    assert batch["video"].shape == (2, 3, 4, 64, 64) and batch["fps"].tolist() == [12, 120]
    assert batch["text"] == ["A square, 0.", "An image, 0."]
    still = batch["video"][1]
    assert (still == still[:, :1]).all() and np.abs(still).max() <= 1
    shrunk = np.asarray(Image.fromarray(read_image(folder / "0.png")).resize((130, 80), Image.Resampling.BOX))
    assert shrunk[40, 65, 1] == pytest.approx((still[1, 0, 32, 32] + 1) * 127.5, abs=3)


def test_broken_sample_is_replaced_from_its_bucket(folder):
    rows = [
        [folder / "gone.mp4", "gone", 20, 256, 144],
        [folder / "short.mp4", "short", 20, 256, 144],
        *([folder / f"{number}.mp4", "t", 20, 256, 144] for number in (4, 5)),
    ]
    with write_video(folder / "short.mp4", 12) as write:
        write(moving_square(5, 256, 144, (9, 9, 9)))
    write_table(folder / "broken.csv", rows)
    dataset = make_dataset(folder, "broken.csv")
    for index in (0, 1):
        item = dataset.item(BucketSample(index, 8, 256, 144, replacements=(2, 3)), np.random.default_rng(1))
        assert item["replaced"] == 1 and item["text"] == "t" and item["video"].shape == (3, 8, 256, 144)
    assert {"gone.mp4", "short.mp4"} <= {
        Path(line.split("\t")[0]).name for line in dataset.quarantine.path.read_text().splitlines()
    }
    with pytest.raises(ValueError, match="gone.mp4"):
        dataset.item(BucketSample(0, 8, 256, 144), np.random.default_rng(1))
    dataset.quarantine.path.unlink()


def test_workers_give_the_same_batches(folder):
    def batches(num_workers: int) -> list[dict]:
        dataset = make_dataset(folder)
        sampler = BucketSampler(dataset.shapes, Buckets(BUCKETS), 2, seed=5)
        loader = iter(Loader(dataset, sampler, collate, num_workers))
        taken = list(islice(loader, 2 * len(sampler)))
        loader.close()
        assert sampler.epoch == 2 and sampler.step == 0
        return taken

    alone, made_ahead = batches(0), batches(2)
    assert len({batch["video"].shape for batch in alone}) == 3
    for one, other in zip(alone, made_ahead):
        assert one["text"] == other["text"] and one["positions"].tolist() == other["positions"].tolist()
        assert (one["video"] == other["video"]).all()


def test_clips_differ_between_epochs(folder):
    """Every sample has its own random numbers, so the clips of a video differ between epochs."""
    dataset = make_dataset(folder)
    clips: dict[str, set] = {}
    for rank in range(2):
        sampler = BucketSampler(dataset.shapes, Buckets({"144p": {4: (1.0, 1)}}), 1, rank, 2)
        for batch in islice(Loader(dataset, sampler, collate), 8 * len(sampler)):
            clips.setdefault(batch["text"][0], set()).add(round(float(batch["video"][0, 0, 0, 4, 4]), 2))
    assert max(map(len, clips.values())) > 3


@pytest.mark.parametrize(
    "rows, columns, words",
    [
        ([["a.mp4", "t"]], ("path", "text"), "has no column num_frames, height, width; its columns are path, text"),
        ([["a.mp4", "t", "x", 1, 2]], None, "row 0, a.mp4: num_frames, height, width are x, 1, 2"),
        ([["a.mp4", "t", 8, 1, 2], ["b.mp4", "t", 8, 0, 2]], None, "row 1, b.mp4: .* should be 1 or more"),
        ([["", "t", 8, 1, 2]], None, "row 0: path is empty"),
        ([], None, "has no rows"),
        ([["a.mp4", "t", 8, "inf", 2]], None, "row 0, a.mp4: .*height 'inf': should be a whole number"),
        ([["a.mp4", "t", "", 1, 2]], None, "num_frames '': should be"),
        ([["a.mp4", "t", 8, 1, "NaN"]], None, "width 'NaN'"),
        ([["a.mp4", "t", 1e30, 1, 2]], None, r"num_frames '1e\+30'"),
        ([["a.mp4", "t", 10**400, 1, 2]], None, "num_frames '1"),
        ([["a.mp4", "t", 8, 1.5, 2]], None, "height '1.5'"),
        ([["a.mp4", "t", 8, 1]], None, "width None: should be"),
        ([["a.mp4", "[" * 200_000, 8, 1, "x"]], None, "row 0, a.mp4: .*width 'x'"),
    ],
)
def test_invalid_table_is_rejected(rows, columns, words, tmp_path):
    path = write_table(tmp_path / "data.csv", rows, *([columns] if columns else []))
    with pytest.raises(ValueError, match=words):
        read_table(path, sizes=True)


def test_table_with_other_columns_and_floats(tmp_path):
    path = write_table(
        tmp_path / "data.csv",
        [["a.mp4", 'two\nlines, and "quotes"', 0.9, "240.0", "426.0", "16.0"]],
        ("path", "text", "aes", "height", "width", "num_frames"),
    )
    table = read_table(path, sizes=True)
    assert table.texts == ['two\nlines, and "quotes"'] and table.shapes.tolist() == [[16, 240, 426]]
    with pytest.raises(FileNotFoundError, match="no such table"):
        read_table(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="data_path is missing"):
        read_table(None)


def test_overlong_field_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "LONGEST_FIELD", 100)
    write_table(tmp_path / "data.csv", [["a.mp4", "t", 8, 1, 2], ["a.mp4", "x" * 200, 8, 1, 2]])
    with pytest.raises(ValueError, match="data.csv: line 3: field larger than field limit"):
        read_table(tmp_path / "data.csv")


def test_table_without_a_header(tmp_path):
    """Of Open-Sora v1.0: recognized by the suffix of the first path; it has no sizes for buckets."""
    path = tmp_path / "data.csv"
    path.write_text('a/1.mp4,"One, two."\nb.MP4,3\n')
    table = read_table(path)
    assert (table.paths, table.texts) == (["a/1.mp4", "b.MP4"], ["One, two.", "3"])
    with pytest.raises(ValueError, match="has no column path, text, num_frames, .* are a/1.mp4"):
        read_table(path, sizes=True)
    path.write_text("video,text\na.mp4,One.\n")
    with pytest.raises(ValueError, match="has no column path; its columns are video, text"):
        read_table(path)


def test_table_in_another_encoding_is_rejected(tmp_path):
    text = "path,text,num_frames,height,width\na.mp4,\u4e2d,8,1,2\n"
    (tmp_path / "data.csv").write_text(text, encoding="utf-8-sig")
    assert read_table(tmp_path / "data.csv", sizes=True).texts == ["\u4e2d"]
    for encoding in ("utf-16", "gbk"):
        (tmp_path / "data.csv").write_text(text, encoding=encoding)
        with pytest.raises(ValueError, match=f"data.csv: not UTF-8 text.*iconv -f {encoding.upper()}"):
            read_table(tmp_path / "data.csv", sizes=True)


@pytest.mark.parametrize(
    "settings, words",
    [({"transform_name": "center"}, "'center' crops squares"), ({"transform_name": "crop"}, "'crop' is not one of")],
)
def test_contradictory_settings_are_rejected(settings, words, folder):
    with pytest.raises(ValueError, match=words):
        make_dataset(folder, **settings)


def test_report_prints_and_draws_the_buckets(folder, capsys, tmp_path):
    config = tmp_path / "train.py"
    config.write_text(f"bucket_config = {BUCKETS!r}\ndataset = dict(frame_interval=2)\n")
    bucket_report.main([str(config), str(folder / "data.csv"), "--output", str(tmp_path / "report.png")])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[1][:6] == ["144p", "8", "1", "2", "6", "3"] and rows[2][:6] == ["144p", "1", "1", "2", "4", "2"]
    image = read_image(tmp_path / "report.png")
    bars = [int((image[:, :620] == color).all(-1).sum()) for color in (bucket_report.VIDEOS, bucket_report.IMAGES)]
    assert bars[1] > 0 and bars[0] / bars[1] == pytest.approx(6 / 4, rel=0.05)
    with pytest.raises(ValueError, match="the field bucket_config is missing"):
        config.write_text("seed = 1\n")
        bucket_report.main([str(config), str(folder / "data.csv")])


def test_parquet_is_read(tmp_path):
    """Read if pyarrow is installed; otherwise the error names it."""
    path = tmp_path / "data.parquet"
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        path.write_bytes(b"PAR1")
        with pytest.raises(ValueError, match="requires the package pyarrow"):
            read_table(path)
        return
    columns = {"path": ["a.mp4"], "text": ["t"], "num_frames": [8], "height": [144.0], "width": [256], "fps": [24]}
    parquet.write_table(pyarrow.table(columns), path)
    table = read_table(path, sizes=True)
    assert (table.paths, table.texts, table.shapes.tolist()) == (["a.mp4"], ["t"], [[8, 144, 256]])
