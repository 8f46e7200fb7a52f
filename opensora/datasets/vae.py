"""Training samples of the VAE: square clips of videos, no text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from opensora.datasets import transforms
from opensora.datasets.broken import Quarantine, read_or_replace
from opensora.datasets.media import VideoReader
from opensora.datasets.media.folders import list_videos, listed_videos
from opensora.datasets.vae_options import VAEDataOptions


class VAEDataset:
    """Clips by the number of their video; no state changes while it is read, so any process may read any sample.

    Args:
        options: what is read and how.
        random_start: clips begin anywhere in their video; else with it, as validation has them.

    Raises:
        FileNotFoundError: no such folder or csv file.
        UserError: no videos, or no such column.
    """

    def __init__(self, options: VAEDataOptions, random_start: bool = True):
        self.options, self.random_start = options, random_start
        self.paths = (
            listed_videos(options.video_path, options.data_file_path, options.video_column)
            if options.data_file_path
            else list_videos(options.video_path, recursive=True)
        )
        self.quarantine = Quarantine(Path(options.cache_dir) / "broken_videos.tsv")

    def __len__(self) -> int:
        return len(self.paths)

    def item(self, index: int, rng: np.random.Generator) -> dict:
        """A clip of the video, or of another one if it cannot be read; random choices come from `rng` alone.

        Returns:
            video, float32 (3, T, H, W) in [-1, 1]; replaced, 1 if it stands for a broken one, else 0.

        Raises:
            UserError: several videos are broken.
        """
        return read_or_replace(
            self._read,
            lambda number: str(self.paths[number]),
            index,
            lambda: np.arange(len(self)),
            rng,
            self.quarantine,
        )

    def _read(self, index: int, rng: np.random.Generator) -> dict:
        rate = self.options.sample_rate
        if self.options.dynamic_sample:
            rate = int(rng.integers(1, rate + 1))
        start = rng.random() if self.random_start else 0.0
        path = self.paths[index]
        with VideoReader(path) as reader:
            try:
                clip = self._clip(reader, reader.expected_frames(), rate, start)
            except ValueError:  # some files announce more frames than they have; counting takes long
                clip = self._clip(reader, len(reader), rate, start)
        return {"video": transforms.to_float(clip.transpose(3, 0, 1, 2))}  # (T, H, W, 3) -> (3, T, H, W)

    def _clip(self, reader: VideoReader, available: int, rate: int, start: float) -> np.ndarray:
        """uint8 (T, H, W, 3); `available` frames are in the file."""
        numbers = window(available, self.options.num_frames, rate, start)
        return np.stack([square(frame, self.options.resolution) for chunk in reader.chunks(numbers) for frame in chunk])


def window(available: int, num_frames: int, rate: int, start: float) -> np.ndarray:
    """Numbers of frames spread evenly over num_frames * rate of the `available` ones, or over all if these are less.

    `start` in [0, 1) says where among the possible places they begin. Of a short video some come more than once.
    """
    size = num_frames * rate
    begin = int(start * (max(0, available - size) + 1))
    return np.linspace(begin, max(begin, min(begin + size, available) - 1), num_frames, dtype=int)


def square(frame: np.ndarray, size: int) -> np.ndarray:
    """uint8 (H, W, 3) -> (size, size, 3): the shorter side resized, antialiased, and the middle cut out."""
    height, width = transforms.short_side(*frame.shape[:2], size)
    resized = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
    top, left = round((height - size) / 2), round((width - size) / 2)
    return resized[top : top + size, left : left + size]
