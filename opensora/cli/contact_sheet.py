"""opensora contact-sheet: frames of videos in one image, or all videos side by side in an animated one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import numpy as np

from opensora.config.command_line import parse_flags
from opensora.config.commands import ContactSheetOptions


def frames_of(path: str, count: int) -> np.ndarray:
    """uint8 (up to `count`, H, W, 3), evenly spaced in time."""
    from opensora.datasets.media import VideoReader
    from opensora.datasets.media.images import evenly_spaced

    with VideoReader(path) as video:
        return np.asarray(video.read(evenly_spaced(len(video), count)))


def animate(paths: Sequence[str], output: str, columns: int) -> None:
    """Plays the videos side by side, at the frame rate of the first."""
    from opensora.datasets.media import VideoReader
    from opensora.datasets.media.images import save_animation, tile_videos

    videos, rates = [], []
    for path in paths:
        with VideoReader(path) as video:
            videos.append(np.asarray(video.read(range(len(video)))))
            rates.append(video.fps)
    save_animation(output, tile_videos(videos, columns), rates[0])


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_flags("Writes frames of videos into one image.", (ContactSheetOptions,), argv)
    from opensora.datasets.media import check_image_suffix, save_grid
    from opensora.datasets.media.images import ANIMATION_SUFFIXES, check_suffix

    if args.animated:
        check_suffix(Path(args.output), ANIMATION_SUFFIXES)
        animate(args.videos, args.output, args.columns)
    else:
        check_image_suffix(args.output)
        save_grid(args.output, [frames_of(path, args.columns) for path in args.videos], args.columns)
    print(args.output)
