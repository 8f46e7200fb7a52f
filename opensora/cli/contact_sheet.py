"""opensora contact-sheet: frames of videos in one image, a row for each video."""

from __future__ import annotations

from collections.abc import Sequence
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


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_flags("Writes frames of videos into one image.", (ContactSheetOptions,), argv)
    from opensora.datasets.media import check_image_suffix, save_grid

    check_image_suffix(args.output)
    save_grid(args.output, [frames_of(path, args.columns) for path in args.videos], args.columns)
    print(args.output)
