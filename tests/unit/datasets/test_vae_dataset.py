"""Clips for training the VAE: which videos, which frames, how they are cut, and broken files."""

from __future__ import annotations

import numpy as np
import pytest
from golden_cases import relative_difference
from made_clips import moving_square

from opensora.datasets.loader import Loader
from opensora.datasets.media import VideoReader, write_video
from opensora.datasets.sampler import BatchSampler
from opensora.datasets.vae import VAEDataOptions, VAEDataset, square, window

FRAMES = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three videos in three places and formats, and other files; frame k of each has brightness 10 k."""
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


def test_videos_of_a_folder(folder):
    dataset = VAEDataset(options(folder))
    assert [path.name for path in dataset.paths] == ["a.mp4", "c.avi", "b.mkv"]
    for index in range(len(dataset)):
        item = dataset.item(index, np.random.default_rng(0))
        assert item["video"].shape == (3, 5, 32, 32) and item["video"].dtype == np.float32
        assert -1 <= item["video"].min() < item["video"].max() <= 1 and item["replaced"] == 0


def test_videos_of_a_csv_file(folder, tmp_path):
    (tmp_path / "train.csv").write_text('"video"\ndeep/c.avi\na.mp4\n')
    listed = options(folder, data_file_path=str(tmp_path / "train.csv"))
    assert [path.name for path in VAEDataset(listed).paths] == ["c.avi", "a.mp4"]
    with pytest.raises(ValueError, match="train.csv: needs a column 'path', has video"):
        VAEDataset(options(folder, data_file_path=str(tmp_path / "train.csv"), video_column="path"))
    (tmp_path / "empty.csv").write_text("video\n")
    with pytest.raises(ValueError, match="empty.csv: lists no videos"):
        VAEDataset(options(folder, data_file_path=str(tmp_path / "empty.csv")))


def test_nothing_to_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent: no such folder"):
        VAEDataset(options(tmp_path / "absent"))
    with pytest.raises(ValueError, match="no videos in this folder"):
        VAEDataset(options(tmp_path))
    with pytest.raises(ValueError, match="num_frames must be 1 or more, not 0"):
        options(tmp_path, num_frames=0)


@pytest.mark.parametrize(
    "available, num_frames, rate, start, expected",
    [
        (12, 5, 2, 0.0, [0, 2, 4, 6, 9]),
        (12, 5, 2, 0.999, [2, 4, 6, 8, 11]),  # the last place is used, too
        (4, 5, 2, 0.999, [0, 0, 1, 2, 3]),
        (1, 3, 1, 0.5, [0, 0, 0]),
        (12, 1, 1, 0.999, [11]),
    ],
)
def test_window(available, num_frames, rate, start, expected):
    assert window(available, num_frames, rate, start).tolist() == expected


def test_clips_begin_anywhere_or_with_the_video(folder):
    dataset = VAEDataset(options(folder, sample_rate=2))
    rng = np.random.default_rng(0)
    seen = {tuple(shown(dataset.item(0, rng)["video"])) for _ in range(40)}
    assert seen == {(0, 2, 4, 6, 9), (1, 3, 5, 7, 10), (2, 4, 6, 8, 11)}
    dynamic = VAEDataset(options(folder, sample_rate=2, dynamic_sample=True), random_start=False)
    seen = {tuple(shown(dynamic.item(0, rng)["video"])) for _ in range(20)}
    assert seen == {(0, 1, 2, 3, 4), (0, 2, 4, 6, 9)}
    again = [dataset.item(1, np.random.default_rng(7))["video"] for _ in range(2)]
    assert np.array_equal(*again)


def test_square():
    """A wide frame loses its sides, evenly, and a small one is enlarged."""
    frame = moving_square(1, 60, 130, (250, 0, 0))[0]
    cut = square(frame, 30)  # 30 x 65, margins of 17.5 round to 18 and 17
    assert cut.shape == (30, 30, 3)
    blocks = frame.reshape(30, 2, 65, 2, 3).mean(axis=(1, 3))[:, 18:48]
    assert relative_difference(cut[3:-3, 3:-3], blocks[3:-3, 3:-3]) < 0.2, "the mean over 2x2, softened at edges"
    assert np.abs(cut - blocks).mean() < 4
    assert square(frame, 90).shape == (90, 90, 3)


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


def test_cut_off_video_is_used_as_far_as_it_goes(tmp_path, media):
    """Its header promises 50 frames, 28 can be read."""
    (tmp_path / "short.mp4").write_bytes((media / "corrupted.mp4").read_bytes())
    dataset = VAEDataset(options(tmp_path, num_frames=28, sample_rate=1))
    clip = dataset.item(0, np.random.default_rng(5))
    assert clip["replaced"] == 0
    with VideoReader(tmp_path / "short.mp4") as reader:
        whole = np.stack([square(frame, 32) for frame in reader.read(range(28))]).transpose(3, 0, 1, 2)
    assert np.abs((clip["video"] + 1) * 127.5 - whole).max() < 1e-3


def test_workers_give_the_same_batches(folder):
    dataset = VAEDataset(options(folder))

    def first_batches(num_workers: int) -> list[np.ndarray]:
        loader = Loader(dataset, BatchSampler([np.arange(len(dataset))], batch_size=2, seed=3), num_workers=num_workers)
        return [batch["video"] for batch, _ in zip(loader, range(3))]

    for here, there in zip(first_batches(0), first_batches(2)):
        # decord now and then gives the frame before in place of a file's last one.
        assert here.shape == (2, 3, 5, 32, 32) and np.array_equal(here[:, :, :-1], there[:, :, :-1])
