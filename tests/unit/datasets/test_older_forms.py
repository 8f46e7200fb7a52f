"""Training data in the forms of Open-Sora-Plan v1.0 and v1.1, and images beside videos."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from loader_checks import LettersTokenizer
from made_clips import moving_square
from t2v_data import read_entries, rng

from opensora.datasets.media import write_video
from opensora.datasets.t2v.dataset import T2VDataset
from opensora.datasets.t2v.joint import JointDataset
from opensora.datasets.t2v.options import T2VDataOptions

FRAMES = 33  # of a clip of `annotated_clips`


def options_of(folder: Path, **changes) -> T2VDataOptions:
    defaults = dict(num_frames=9, max_image_size=32, model_max_length=64, cfg=0.0, cache_dir=str(folder / "cache"))
    return T2VDataOptions(**{**defaults, "min_steps_per_size": 0, **changes})


def write_lists(data: Path, folder: Path, **changes) -> dict[str, str]:
    """The clips of `data` in the forms of v1.0 and of v1.1; `changes` are those of the videos of v1.1."""
    clips, entries = data.parent / "clips", read_entries(data)
    videos = [{"path": entry["path"], "cap": entry["cap"]} for entry in entries if entry["path"].endswith(".mp4")]
    images = [{"path": entry["path"], "cap": entry["cap"]} for entry in entries if entry["path"].endswith(".jpg")]
    whole_paths = [{"path": str(clips / video["path"]), "cap": [video["cap"], "another"]} for video in videos]
    (folder / "v1_0.json").write_text(json.dumps(whole_paths))
    for name, some in (("video", [{**video, **changes} for video in videos]), ("image", images)):
        (folder / f"{name}.json").write_text(json.dumps(some))
        (folder / f"{name}_data.txt").write_text(f"{clips},{folder / f'{name}.json'}\n")
    lists = {"data_path": "v1_0.json", "video_data": "video_data.txt", "image_data": "image_data.txt"}
    return {option: str(folder / name) for option, name in lists.items()}


def times(pixels: np.ndarray) -> np.ndarray:
    """The numbers of the frames (3, T, H, W) in their clip, by the brightness of their background."""
    levels = (pixels[:, :, -4:].mean((0, 2, 3)) / 2 + 0.5) * 255
    return (levels - 40) / 120 * FRAMES


def test_videos_of_v1_0(annotated_clips, tmp_path):
    lists = write_lists(annotated_clips, tmp_path)
    dataset = T2VDataset(options_of(tmp_path, data_path=lists["data_path"], sample_rate=3), LettersTokenizer(), True)
    assert len(dataset) == 6
    starts = set()
    for seed in range(8):
        sample = dataset.item(0, rng(seed))
        assert sample["pixels"].shape == (3, 9, 32, 32)  # the square in the middle of 64 x 96
        assert LettersTokenizer.text(sample["input_ids"]) == "a square in color 0."  # the first caption
        numbers = times(sample["pixels"])
        assert np.allclose(np.diff(numbers), 26 / 8, atol=1.2) and abs(numbers[-1] - numbers[0] - 26) < 1.5
        starts.add(round(float(numbers[0])))
    assert len(starts) > 2


@pytest.mark.parametrize("frame_idx", ["7:33", "7:9"])
def test_frame_range_of_v1_1_starts_the_clip(frame_idx, annotated_clips, tmp_path):
    """Its end has no effect."""
    lists = write_lists(annotated_clips, tmp_path, frame_idx=frame_idx)
    dataset = T2VDataset(options_of(tmp_path, video_data=lists["video_data"]), LettersTokenizer(), True)
    for seed in range(3):
        assert np.allclose(times(dataset.item(1, rng(seed))["pixels"]), 7 + np.arange(9), atol=1)


def test_short_videos_are_left_out(annotated_clips, tmp_path):
    lists = write_lists(annotated_clips, tmp_path)
    with pytest.raises(ValueError, match="no sample is left to train on: 6 too short"):
        T2VDataset(options_of(tmp_path, data_path=lists["data_path"], num_frames=37), LettersTokenizer(), True)


def test_smaller_copy_is_preferred_and_a_broken_one_replaced(annotated_clips, tmp_path):
    lists = write_lists(annotated_clips, tmp_path)
    own = tmp_path / "own"
    shutil.copytree(annotated_clips.parent / "clips", own)
    (tmp_path / "video_data.txt").write_text(f"{own},{tmp_path / 'video.json'}\n")
    with write_video(own / "0_resize_1080p.mp4", 24) as write:
        write(moving_square(FRAMES, 48, 72, (250, 250, 250)))
    broken = own / "1_resize_1080p.mp4"
    broken.write_bytes(b"not a video")
    dataset = T2VDataset(options_of(tmp_path, video_data=lists["video_data"]), LettersTokenizer(), True)
    assert dataset.item(0, rng())["pixels"].max() > 0.8 and not dataset.item(0, rng())["replaced"]
    assert dataset.item(1, rng())["replaced"] and broken.exists()
    assert str(broken) in (tmp_path / "cache/broken_samples.tsv").read_text()


def test_images_beside_a_video_are_its_frames(annotated_clips, tmp_path):
    lists = write_lists(annotated_clips, tmp_path)
    options = options_of(tmp_path, data_path=lists["data_path"], use_image_num=3, use_img_from_vid=True)
    sample = JointDataset(options, LettersTokenizer(), True).item(2, rng())
    assert sample["images"].shape == (3, 3, 32, 32) and sample["input_ids"].shape == (4, 64)
    assert (sample["images"] == sample["pixels"][:, [0, 4, 8]]).all()
    assert {LettersTokenizer.text(row) for row in sample["input_ids"]} == {"a square in color 2."}
    batch = JointDataset(options, LettersTokenizer(), True).collate(2)([sample, sample])
    assert batch["pixels"].shape == (2, 3, 9, 32, 32) and batch["images"].shape == (2, 3, 3, 32, 32)
    assert batch["cond_mask"].shape == (2, 4, 64) and batch["attention_mask"] is None


def test_images_beside_a_video_come_in_groups(annotated_clips, tmp_path):
    """Of four images, three make one group, the last group is incomplete, and every video has the first."""
    lists = write_lists(annotated_clips, tmp_path)
    options = dict(video_data=lists["video_data"], image_data=lists["image_data"])
    for count, groups in ((3, [[6, 7, 8]]), (2, [[6, 7], [8, 9]])):
        dataset = JointDataset(options_of(tmp_path, **options, use_image_num=count), LettersTokenizer(), True)
        for video in range(4):
            texts = [LettersTokenizer.text(row) for row in dataset.item(video, rng())["input_ids"]]
            numbers = [video, *groups[video % len(groups)]]
            assert texts == [f"a square in color {number}." for number in numbers]
    with pytest.raises(ValueError, match="image_data.txt: has 4 images, fewer than --use_image_num 5"):
        JointDataset(options_of(tmp_path, **options, use_image_num=5), LettersTokenizer(), True)


def test_missing_list_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="^--data_path none.json: no such file"):
        T2VDataset(options_of(tmp_path, data_path="none.json"), LettersTokenizer(), True)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({}, "give the training data by one of --data, --data_path, --video_data"),
        (dict(data="a", data_path="b"), "by one of"),
        (dict(data="a", sample_rate=2), "--sample_rate 2: should be 1 or more, and with --data it must be 1"),
        (dict(data_path="a", sample_rate=0), "--sample_rate 0"),
        (dict(data_path="a", max_image_size=None), "--data_path: samples .* have one size: give --max_image_size"),
        (dict(data_path="a", use_image_num=2), "--use_image_num 2: .* need either --image_data or --use_img_from_vid"),
        (dict(data_path="a", use_img_from_vid=True), "these need --use_image_num 1 or more"),
        (dict(data="a", max_image_size=None, max_hxw=4096, use_image_num=1, use_img_from_vid=True), "need one size"),
        (dict(data="a", max_image_size=20), "max_height and max_width 20, 20: should be multiples of 8"),
    ],
)
def test_contradictory_options_are_refused(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        options_of(tmp_path, **changes)
