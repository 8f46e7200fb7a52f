"""Training samples of Open-Sora v1.1: videos and images with captions, listed in a table.

`VariableVideoTextDataset` returns samples in the shape of their bucket, `VideoTextDataset` in a single shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np

from opensora.config.options import check_choice
from opensora.datasets import transforms
from opensora.datasets.broken import Quarantine, read_or_replace
from opensora.datasets.bucketed.resize import TRANSFORMS
from opensora.datasets.bucketed.sampler import BucketSample
from opensora.datasets.bucketed.table import read_table
from opensora.datasets.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, VideoReader, read_image
from opensora.datasets.temporal_sampling import last_start, temporal_crop
from opensora.errors import UserError

DEFAULT_FPS = 24.0  # for videos without a frame rate
IMAGE_FPS = 120.0  # the frame rate that the models are conditioned on for images
CONDITIONING = ("num_frames", "height", "width", "ar", "fps")  # numbers that the models are conditioned on

Shape = tuple[int, int, int]


class VideoTextDataset:
    """Samples by row of the table. Reading changes no state, so any process may read any sample.

    Args:
        data_path: see `opensora.datasets.bucketed.table`.
        num_frames: frames of a sample; images are repeated.
        image_size: height and width of a sample.
        frame_interval: stride of a clip's frames in its video.
        transform_name: "resize_crop", or "center" for squares.
        divide_fps: condition the model on the frame rate divided by frame_interval, as Open-Sora does since v1.2.
        cache_dir: folder for the list of broken samples.

    Raises:
        FileNotFoundError: no such table.
        UserError: an invalid table, or contradictory settings.
    """

    requires_sizes = False

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
            raise UserError(f"frame_interval {frame_interval!r}: should be a whole number of at least 1")
        self.num_frames, self.frame_interval, self.image_size = num_frames, frame_interval, image_size
        self.resize_video, self.resize_image = TRANSFORMS[transform_name]
        self._check_shape(transform_name)
        self.divide_fps = divide_fps
        self.table = read_table(data_path, self.requires_sizes)
        self.quarantine = Quarantine(Path(cache_dir) / "broken_samples.tsv")

    def __len__(self) -> int:
        return len(self.table)

    def item(self, index: Any, rng: np.random.Generator) -> dict[str, Any]:
        """The sample of row `index`, or a random other sample if it cannot be read.

        Returns:
            video: float32 (3, T, H, W) in [-1, 1].
            text: the caption.
            num_frames, height, width, ar, fps: float32; ar is height / width.
            replaced: 1 if the sample was replaced by another, else 0.

        Raises:
            UserError: too many samples are broken.
        """
        return self._read_or_replace(int(index), range(len(self)), self.shape, rng)

    @property
    def shape(self) -> Shape:
        """Frames, height and width of the samples."""
        height, width = self.image_size or (None, None)
        if not self.num_frames or self.num_frames < 1 or height is None or width is None:
            raise UserError(
                f"num_frames {self.num_frames}, image_size {self.image_size}: VideoTextDataset makes all samples in "
                f"one shape, such as 16 and (256, 256); use VariableVideoTextDataset for buckets"
            )
        return self.num_frames, height, width

    def _check_shape(self, transform_name: str) -> None:
        _, height, width = self.shape
        if transform_name == "center" and height != width:
            raise UserError(
                f"transform_name 'center' crops squares, but image_size is {height, width}: use 'resize_crop'"
            )

    def _read_or_replace(self, index: int, candidates: Sequence[int], shape: Shape, rng: np.random.Generator) -> dict:
        return read_or_replace(
            lambda number, sample_rng: self._read(number, shape, sample_rng),
            self.table.paths.__getitem__,
            index,
            lambda: candidates,
            rng,
            self.quarantine,
        )

    def _read(self, index: int, shape: Shape, rng: np.random.Generator) -> dict[str, Any]:
        path = Path(self.table.paths[index])
        frames, height, width = shape
        if path.suffix.lower() in VIDEO_SUFFIXES:
            video, fps = self._read_video(path, shape, rng)
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            video, fps = np.stack([self.resize_image(read_image(path), height, width)] * frames), IMAGE_FPS
        else:
            raise UserError(
                f"{path}: the suffix is neither that of a video ({' '.join(VIDEO_SUFFIXES)}) nor that of an image "
                f"({' '.join(IMAGE_SUFFIXES)})"
            )
        numbers = dict(zip(CONDITIONING, map(np.float32, (frames, height, width, height / width, fps))))
        video = np.ascontiguousarray(transforms.to_float(video).swapaxes(0, 1))  # (T, 3, H, W) -> (3, T, H, W)
        return {"video": video, "text": self.table.texts[index], **numbers}

    def _read_video(self, path: Path, shape: Shape, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """The clip, float32 (T, 3, H, W) in 0 .. 255, and its frame rate."""
        with VideoReader(path) as reader:
            try:
                clip = self._read_clip(reader, reader.expected_frames(), shape, rng)
            except ValueError:  # some headers promise too many frames; counting decodes the file, so it comes second
                clip = self._read_clip(reader, len(reader), shape, rng)
            fps = reader.fps or DEFAULT_FPS
        return clip, fps / self.frame_interval if self.divide_fps else fps

    def _read_clip(self, reader: VideoReader, available: int, shape: Shape, rng: np.random.Generator) -> np.ndarray:
        """A random clip from the first `available` frames of the file."""
        frames, height, width = shape
        start = int(rng.integers(last_start(available, frames, self.frame_interval) + 1))
        numbers = temporal_crop(start, available, frames, self.frame_interval)
        return np.concatenate([self.resize_video(chunk, height, width) for chunk in reader.chunks(numbers)])


class VariableVideoTextDataset(VideoTextDataset):
    """Samples in the shape of their bucket, see `opensora.datasets.bucketed.buckets`."""

    requires_sizes = True

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

    def item(self, index: BucketSample, rng: np.random.Generator) -> dict[str, Any]:
        """As `VideoTextDataset.item`; a broken sample is replaced by another of its bucket, in the same shape."""
        return self._read_or_replace(index.number, index.replacements or (index.number,), index.shape, rng)

    def _check_shape(self, transform_name: str) -> None:
        if transform_name == "center":
            raise UserError("transform_name 'center' crops squares, which buckets are not: use 'resize_crop'")


def collate(items: Sequence[dict]) -> dict[str, Any]:
    """Stacks samples of one shape into a batch; `text` becomes a list."""
    arrays = {name: np.stack([item[name] for item in items]) for name in ("video", *CONDITIONING)}
    return {**arrays, "text": [item["text"] for item in items], "replaced": sum(item["replaced"] for item in items)}
