"""Training samples of the VAE: square video clips without text."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from opensora.datasets import transforms
from opensora.datasets.broken import Quarantine, read_or_replace
from opensora.datasets.media import VideoReader
from opensora.datasets.media.folders import list_videos, listed_videos
from opensora.datasets.temporal_sampling import sample_window
from opensora.datasets.vae_options import VAEDataOptions


class VAEDataset:
    """Clips, indexed by video. Reading changes no state, so any process may read any sample.

    Args:
        random_start: clips start at a random frame (training); otherwise at the first frame (validation).

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
        """A clip of the video, or of a random other video if it cannot be read.

        Returns:
            video: float32 (3, T, H, W) in [-1, 1].
            replaced: 1 if the video was replaced by another, else 0.

        Raises:
            UserError: too many videos are broken.
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
        position = rng.random() if self.random_start else 0.0
        path = self.paths[index]
        with VideoReader(path) as reader:
            try:
                clip = self._clip(reader, reader.expected_frames(), rate, position)
            except ValueError:  # some headers promise too many frames; counting decodes the file, so it comes second
                clip = self._clip(reader, len(reader), rate, position)
        return {"video": transforms.to_float(clip.transpose(3, 0, 1, 2))}  # (T, H, W, 3) -> (3, T, H, W)

    def _clip(self, reader: VideoReader, available: int, rate: int, position: float) -> np.ndarray:
        """uint8 (T, H, W, 3), from the first `available` frames of the file."""
        numbers = sample_window(available, self.options.num_frames, rate, position)
        size = self.options.resolution
        return np.stack([resize_square(frame, size) for chunk in reader.chunks(numbers) for frame in chunk])


def resize_square(frame: np.ndarray, size: int) -> np.ndarray:
    """uint8 (H, W, 3) -> (size, size, 3): resizes the shorter side to `size`, antialiased, then center-crops."""
    height, width = transforms.short_side(frame.shape[0], frame.shape[1], size)
    resized = np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR))
    top, left = round((height - size) / 2), round((width - size) / 2)
    return resized[top : top + size, left : left + size]
