"""opensora contact-sheet: frames of videos in one image, a row for each video."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import numpy as np

from opensora.datasets.media import VideoReader, check_image_suffix, save_grid
from opensora.utils.cli import CommandParser


def frames_of(path: str, count: int) -> np.ndarray:
    """uint8 (up to `count`, H, W, 3), evenly spaced in time."""
    with VideoReader(path) as video:
        return np.asarray(video.read(np.linspace(0, len(video) - 1, min(count, len(video)), dtype=int).tolist()))


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = CommandParser(description="Videos -> one image of their frames.")
    parser.add_argument("videos", nargs="+", help="the videos, one row each")
    parser.add_argument("--output", required=True, help="png or jpg")
    parser.add_argument("--columns", type=int, default=8, help="frames of each video")
    args = parser.parse_args(argv)
    check_image_suffix(args.output)
    save_grid(args.output, [frames_of(path, args.columns) for path in args.videos], args.columns)
    print(args.output)
