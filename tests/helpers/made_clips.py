"""Generated training data: short videos of a moving square, images, an annotation file and a data file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from opensora.datasets.media import save_image, write_video


def moving_square(frames: int, height: int, width: int, color: tuple) -> np.ndarray:
    """uint8 (T, H, W, 3): a square of `color` that moves right over a background that brightens."""
    video = np.empty((frames, height, width, 3), np.uint8)
    side = min(height, width) // 3
    for time, frame in enumerate(video):
        frame[:] = 40 + 120 * time // frames
        left = (width - side) * time // max(1, frames - 1)
        frame[height // 3 : height // 3 + side, left : left + side] = color
    return video


def make_clips(
    folder: Path, videos: int = 6, images: int = 4, frames: int = 33, size: tuple = (64, 96), fps: int = 24
) -> Path:
    """Writes `folder`/clips/*.mp4 and *.jpg, annotation.json and merge_data.txt; returns the last."""
    (folder / "clips").mkdir(parents=True)
    colors = np.random.default_rng(0).integers(0, 256, (videos + images, 3))
    entries = []
    for number, color in enumerate(colors):
        is_video = number < videos
        entry = {
            "path": f"{number}.mp4" if is_video else f"{number}.jpg",
            "cap": f"A square in color {number}.",
            "resolution": {"height": size[0], "width": size[1]},
        }
        if is_video:
            entry.update(num_frames=frames, fps=fps, cut=[0, frames], aesthetic=4 + number / 3)
            with write_video(folder / "clips" / entry["path"], fps) as write:
                write(moving_square(frames, *size, color))
        else:
            save_image(folder / "clips" / entry["path"], moving_square(1, *size, color)[0])
        entries.append(entry)
    return write_data_file(folder, entries)


def image_entry(number: int) -> dict:
    """An annotation of an image with two captions."""
    return {
        "path": f"{number}.jpg",
        "cap": ["one", f"caption \u4e2d {number}"],
        "resolution": {"height": 64, "width": 96},
    }


def write_data_file(folder: Path, entries: list) -> Path:
    """Writes annotation.json with these entries and merge_data.txt that lists it; returns the latter."""
    (folder / "annotation.json").write_text(json.dumps(entries), encoding="utf-8")
    (folder / "merge_data.txt").write_text(f"{folder / 'clips'},{folder / 'annotation.json'}\n")
    return folder / "merge_data.txt"
