"""Puts frames of videos into one picture, a row for each video:

python examples/contact_sheet.py --output sheet.png clip.mp4 another.mp4
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a fresh clone

from opensora.config.commands import ContactSheetOptions  # noqa: E402
from opensora.utils.cli import parse_flags, run_main  # noqa: E402


def frames_of(path: str, count: int) -> np.ndarray:
    """uint8 (up to `count`, H, W, 3), evenly spaced in time."""
    from opensora.datasets.media import VideoReader

    with VideoReader(path) as video:
        return np.asarray(video.read(np.linspace(0, len(video) - 1, min(count, len(video)), dtype=int)))


def main() -> None:
    args = parse_flags("Writes frames of videos into one image.", (ContactSheetOptions,))
    from opensora.datasets.media import check_image_suffix, save_grid

    check_image_suffix(args.output)
    save_grid(args.output, [frames_of(path, args.columns) for path in args.videos], args.columns)
    print(args.output)


if __name__ == "__main__":
    run_main(main)
