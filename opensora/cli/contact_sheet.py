"""opensora contact-sheet: frames of videos in one image, or the videos side by side in an animated image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import numpy as np

from opensora.config.command_line import parse_flags
from opensora.config.commands import ContactSheetOptions


def read_frames(path: str, count: Optional[int] = None) -> tuple[np.ndarray, float]:
    """uint8 (T, H, W, 3) and the frame rate.

    Args:
        count: the most frames to read, evenly spaced in time; default: all.
    """
    from opensora.datasets.media import VideoReader
    from opensora.datasets.media.images import evenly_spaced

    with VideoReader(path) as video:
        return np.asarray(video.read(evenly_spaced(len(video), count or len(video)))), video.fps


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_flags("Writes frames of videos into one image.", (ContactSheetOptions,), argv)
    from opensora.datasets.media import check_image_suffix, save_grid
    from opensora.datasets.media.images import ANIMATION_SUFFIXES, check_suffix, save_animation, tile_videos

    if args.animated:
        check_suffix(Path(args.output), ANIMATION_SUFFIXES)
        videos, rates = zip(*map(read_frames, args.videos))
        save_animation(args.output, tile_videos(videos, args.columns), rates[0])
    else:
        check_image_suffix(args.output)
        save_grid(args.output, [read_frames(path, args.columns)[0] for path in args.videos], args.columns)
    print(args.output)
