"""Clips for VAE training: lists of videos, frame selection, crops and broken files."""

from __future__ import annotations

import numpy as np
import pytest
from golden_cases import relative_difference
from made_clips import moving_square

from opensora.datasets.loader import Loader
from opensora.datasets.media import VideoReader, write_video
from opensora.datasets.sampler import BatchSampler
from opensora.datasets.temporal_sampling import sample_window
from opensora.datasets.vae import VAEDataOptions, VAEDataset, resize_square

FRAMES = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three videos in different folders and formats, and other files; frame k of each has brightness 10 k."""
    folder = tmp_path_factory.mktemp("videos")
    for name in ("a.mp4", "deep/er/b.mkv", "deep/c.avi"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with write_video(folder / name, fps=10) as write:
            write(np.full((FRAMES, 48, 64, 3), 10, np.uint8) * np.arange(FRAMES, dtype=np.uint8)[:, None, None, None])
    (folder / "notes.txt").write_text("no video")
    (folder / ".hidden.mp4").write_bytes(b"")
    return folder


def options(folder, **changes) -> VAEDataOptions:
    settings = {"video_path": str(folder), "num_frames": 5, "resolution": 32, "cache_dir": str(folder / "cache")}
    return VAEDataOptions(**{**settings, **changes})


def shown(clip: np.ndarray) -> list[int]:
    """The numbers of the frames in a clip of `folder`."""
    return np.rint((clip.mean(axis=(0, 2, 3)) + 1) * 127.5 / 10).astype(int).tolist()


def test_videos_of_folder_are_found(folder):
    dataset = VAEDataset(options(folder))
    assert [path.name for path in dataset.paths] == ["a.mp4", "c.avi", "b.mkv"]
    for index in range(len(dataset)):
        item = dataset.item(index, np.random.default_rng(0))
        assert item["video"].shape == (3, 5, 32, 32) and item["video"].dtype == np.float32
        assert -1 <= item["video"].min() < item["video"].max() <= 1 and item["replaced"] == 0


def test_videos_of_csv_file_are_listed(folder, tmp_path):
    (tmp_path / "train.csv").write_text('"video"\ndeep/c.avi\na.mp4\n')
    listed = options(folder, data_file_path=str(tmp_path / "train.csv"))
    assert [path.name for path in VAEDataset(listed).paths] == ["c.avi", "a.mp4"]
    with pytest.raises(ValueError, match="train.csv: needs a column 'path', has video"):
        VAEDataset(options(folder, data_file_path=str(tmp_path / "train.csv"), video_column="path"))
    (tmp_path / "empty.csv").write_text("video\n")
    with pytest.raises(ValueError, match="empty.csv: lists no videos"):
        VAEDataset(options(folder, data_file_path=str(tmp_path / "empty.csv")))


def test_missing_videos_are_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        VAEDataset(options(tmp_path / "absent"))
    with pytest.raises(ValueError, match="no videos in this folder"):
        VAEDataset(options(tmp_path))
    with pytest.raises(ValueError, match="num_frames must be 1 or more, not 0"):
        options(tmp_path, num_frames=0)


@pytest.mark.parametrize(
    "available, num_frames, rate, position, expected",
    [
        (12, 5, 2, 0.0, [0, 2, 4, 6, 9]),
        (12, 5, 2, 0.999, [2, 4, 6, 8, 11]),  # the last start is possible
        (4, 5, 2, 0.999, [0, 0, 1, 2, 3]),
        (1, 3, 1, 0.5, [0, 0, 0]),
        (12, 1, 1, 0.999, [11]),
    ],
)
def test_sample_window_is_evenly_spaced(available, num_frames, rate, position, expected):
    assert sample_window(available, num_frames, rate, position).tolist() == expected


def test_clips_start_at_random_or_at_first_frame(folder):
    dataset = VAEDataset(options(folder, sample_rate=2))
    rng = np.random.default_rng(0)
    seen = {tuple(shown(dataset.item(0, rng)["video"])) for _ in range(40)}
    assert seen == {(0, 2, 4, 6, 9), (1, 3, 5, 7, 10), (2, 4, 6, 8, 11)}
    dynamic = VAEDataset(options(folder, sample_rate=2, dynamic_sample=True), random_start=False)
    seen = {tuple(shown(dynamic.item(0, rng)["video"])) for _ in range(20)}
    assert seen == {(0, 1, 2, 3, 4), (0, 2, 4, 6, 9)}
    again = [dataset.item(1, np.random.default_rng(7))["video"] for _ in range(2)]
    assert np.array_equal(*again)


def test_resize_square_center_crops():
    """A wide frame is center-cropped, and a small one is enlarged."""
    frame = moving_square(1, 60, 130, (250, 0, 0))[0]
    cropped = resize_square(frame, 30)  # 30 x 65, margins of 17.5 round to 18 and 17
    assert cropped.shape == (30, 30, 3)
    blocks = frame.reshape(30, 2, 65, 2, 3).mean(axis=(1, 3))[:, 18:48]
    assert relative_difference(cropped[3:-3, 3:-3], blocks[3:-3, 3:-3]) < 0.2, "the mean over 2x2, smoother at edges"
    assert np.abs(cropped - blocks).mean() < 4
    assert resize_square(frame, 90).shape == (90, 90, 3)


def test_broken_videos_are_replaced_and_listed(folder, tmp_path):
    broken = tmp_path / "videos"
    broken.mkdir()
    (broken / "a.mp4").write_bytes((folder / "a.mp4").read_bytes())
    (broken / "z.mp4").write_bytes(b"not a video")
    dataset = VAEDataset(options(broken, cache_dir=str(tmp_path / "cache")))
    item = dataset.item(1, np.random.default_rng(0))
    assert item["replaced"] == 1 and max(shown(item["video"])) <= 11
    name, reason = (tmp_path / "cache" / "broken_videos.tsv").read_text().strip().split("\t")
    assert name == str(broken / "z.mp4") and "not a video" in reason
    (broken / "a.mp4").write_bytes(b"neither")
    with pytest.raises(ValueError, match="none of 10 samples"):
        VAEDataset(options(broken, cache_dir=str(tmp_path / "other"))).item(0, np.random.default_rng(0))


def test_corrupt_video_is_used_up_to_the_fault(tmp_path, corrupt_clip):
    """The header promises more frames than can be read."""
    (tmp_path / "short.mp4").write_bytes(corrupt_clip.read_bytes())
    with VideoReader(tmp_path / "short.mp4") as reader:
        count = len(reader)
        assert count < reader._stream.stream.frames
        frames = reader.read(range(count))
    dataset = VAEDataset(options(tmp_path, num_frames=count, sample_rate=1))
    clip = dataset.item(0, np.random.default_rng(5))
    assert clip["replaced"] == 0
    expected = np.stack([resize_square(frame, 32) for frame in frames]).transpose(3, 0, 1, 2)
    assert np.abs((clip["video"] + 1) * 127.5 - expected).max() < 1e-3


def test_workers_give_the_same_batches(folder):
    dataset = VAEDataset(options(folder))

    def first_batches(num_workers: int) -> list[np.ndarray]:
        loader = Loader(dataset, BatchSampler([np.arange(len(dataset))], batch_size=2, seed=3), num_workers=num_workers)
        return [batch["video"] for batch, _ in zip(loader, range(3))]

    for here, there in zip(first_batches(0), first_batches(2)):
        assert here.shape == (2, 3, 5, 32, 32) and np.array_equal(here, there)
