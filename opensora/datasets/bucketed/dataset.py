"""Training samples of Open-Sora v1.1: videos and images with captions, listed in a csv file.

`VariableVideoTextDataset` gives a sample in the shape that its bucket has, `VideoTextDataset` all in one shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np

from opensora.config.options import check_choice
from opensora.datasets import transforms
from opensora.datasets.broken import Quarantine, read_or_replace
from opensora.datasets.bucketed.fit import TRANSFORMS
from opensora.datasets.bucketed.sampler import BucketSample
from opensora.datasets.bucketed.table import read_table
from opensora.datasets.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, VideoReader, read_image
from opensora.errors import UserError

DEFAULT_FPS = 24.0  # of videos that do not say
IMAGE_FPS = 120.0  # what the models know images by
NUMBERS = ("num_frames", "height", "width", "ar", "fps")  # that the models are told of a sample


class VideoTextDataset:
    """Samples by row of the table; no state changes while it is read, so any process may read any sample.

    Args:
        data_path: see `opensora.datasets.bucketed.table`.
        num_frames, image_size: of a sample; images are repeated.
        frame_interval: of a video every so many-th frame is taken.
        transform_name: "resize_crop", or "center" for squares.
        divide_fps: the model is told the rate after frames were left out, as from Open-Sora v1.2 on.
        cache_dir: for the list of broken samples.

    Raises:
        FileNotFoundError: no such table.
        UserError: a faulty table, or settings that contradict.
    """

    with_sizes = False

    def __init__(
        self,
        data_path: Optional[str],
        num_frames: Optional[int] = 16,
        frame_interval: int = 1,
        image_size: Optional[Sequence[Optional[int]]] = (256, 256),
        transform_name: str = "center",
        divide_fps: bool = False,
        cache_dir: str = "./cache_dir",
    ):
        check_choice("transform_name", transform_name, TRANSFORMS)
        if not isinstance(frame_interval, int) or frame_interval < 1:
            raise UserError(f"frame_interval {frame_interval!r}: should be a whole number from 1 on")
        self.num_frames, self.frame_interval, self.image_size = num_frames, frame_interval, image_size
        self.fit_video, self.fit_image = TRANSFORMS[transform_name]
        self._check_shape(transform_name)
        self.divide_fps = divide_fps
        self.table = read_table(data_path, self.with_sizes)
        self.quarantine = Quarantine(Path(cache_dir) / "broken_samples.tsv")

    def __len__(self) -> int:
        return len(self.table)

    def item(self, index: int, rng: np.random.Generator) -> dict:
        """A sample, or another one if it cannot be read; random choices come from `rng` alone.

        Returns:
            video, float32 (3, T, H, W) in [-1, 1]; text; num_frames, height, width, ar (height / width) and fps, float32;
            replaced, 1 if it stands for a broken one, else 0.

        Raises:
            UserError: several samples are broken.
        """
        shape = (self.num_frames, *self.image_size)
        return self._read_or_replace(int(index), range(len(self)), shape, rng)

    def _check_shape(self, transform_name: str) -> None:
        if not self.num_frames or self.num_frames < 1 or not self.image_size or None in self.image_size:
            raise UserError(
                f"num_frames {self.num_frames}, image_size {self.image_size}: VideoTextDataset makes all "
                f"samples of one shape, such as 16 and (256, 256); buckets are for "
                f"VariableVideoTextDataset"
            )
        if transform_name == "center" and self.image_size[0] != self.image_size[1]:
            raise UserError(
                f"transform_name 'center' cuts out squares, image_size is {tuple(self.image_size)}: use 'resize_crop'"
            )

    def _read_or_replace(self, index: int, others: Sequence[int], shape: tuple, rng: np.random.Generator) -> dict:
        return read_or_replace(
            lambda number, own_rng: self._read(number, shape, own_rng),
            self.table.paths.__getitem__,
            index,
            lambda: others,
            rng,
            self.quarantine,
        )

    def _read(self, index: int, shape: tuple[int, int, int], rng: np.random.Generator) -> dict:
        path = Path(self.table.paths[index])
        frames, height, width = shape
        if path.suffix.lower() in VIDEO_SUFFIXES:
            video, fps = self._read_video(path, shape, rng)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            video, fps = np.stack([self.fit_image(read_image(path), height, width)] * frames), IMAGE_FPS
        else:
            raise UserError(
                f"{path}: neither a video ({' '.join(VIDEO_SUFFIXES)}) nor an image "
                f"({' '.join(IMAGE_SUFFIXES)}) by its name"
            )
        numbers = dict(zip(NUMBERS, map(np.float32, (frames, height, width, height / width, fps))))
        video = np.ascontiguousarray(transforms.to_float(video).swapaxes(0, 1))  # T 3 H W -> 3 T H W
        return {"video": video, "text": self.table.texts[index], **numbers}

    def _read_video(self, path: Path, shape: tuple, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """The clip, float32 (T, 3, H, W) in 0 .. 255, and its frame rate."""
        with VideoReader(path) as reader:
            try:
                clip = self._clip(reader, reader.expected_frames(), shape, rng)
            except ValueError:  # some files announce more frames than they have; counting takes long
                clip = self._clip(reader, len(reader), shape, rng)
            fps = reader.fps or DEFAULT_FPS
        return clip, fps / self.frame_interval if self.divide_fps else fps

    def _clip(self, reader: VideoReader, available: int, shape: tuple, rng: np.random.Generator) -> np.ndarray:
        """`available` frames are in the file."""
        frames, height, width = shape
        begin = int(rng.integers(last_begin(available, frames, self.frame_interval) + 1))
        numbers = temporal_crop(begin, available, frames, self.frame_interval)
        return np.concatenate([self.fit_video(chunk, height, width) for chunk in reader.chunks(numbers)])


class VariableVideoTextDataset(VideoTextDataset):
    """Samples in the shapes of their buckets, see `opensora.datasets.bucketed.buckets`; `item` takes a `BucketSample`."""

    with_sizes = True

    def __init__(
        self,
        data_path: Optional[str],
        num_frames: Any = None,
        frame_interval: int = 1,
        image_size: Any = None,
        transform_name: str = "resize_crop",
        divide_fps: bool = False,
        cache_dir: str = "./cache_dir",
    ):
        super().__init__(data_path, num_frames, frame_interval, image_size, transform_name, divide_fps, cache_dir)

    @property
    def shapes(self) -> np.ndarray:
        """(N, 3) frames, height and width of the files."""
        return self.table.shapes

    def item(self, index: BucketSample, rng: np.random.Generator) -> dict:
        """As `VideoTextDataset.item`; for a broken sample another of its bucket stands, in the same shape."""
        return self._read_or_replace(index.index, index.spares or (index.index,), index[1:4], rng)

    def _check_shape(self, transform_name: str) -> None:
        if transform_name == "center":
            raise UserError("transform_name 'center' cuts out squares, which buckets are not: use 'resize_crop'")


def last_begin(available: int, num_frames: int, frame_interval: int = 1) -> int:
    """The last frame that a clip may begin with; the published code leaves out one that would be possible."""
    return max(0, available - num_frames * frame_interval - 1)


def temporal_crop(begin: int, available: int, num_frames: int, frame_interval: int = 1) -> np.ndarray:
    """Numbers of frames spread evenly over num_frames * frame_interval of the `available` ones, or over those left.

    Raises:
        UserError: fewer frames are left than the clip has.
    """
    end = min(begin + num_frames * frame_interval, available)
    if end - begin < num_frames:
        raise UserError(f"{end - begin} frames are left for a clip of {num_frames}")
    return np.linspace(begin, end - 1, num_frames, dtype=int)


def collate(items: Sequence[dict]) -> dict:
    """Samples of one shape as a batch: every array with a batch axis in front, `text` a list."""
    arrays = {name: np.stack([item[name] for item in items]) for name in ("video", *NUMBERS)}
    return {**arrays, "text": [item["text"] for item in items], "replaced": sum(item["replaced"] for item in items)}
