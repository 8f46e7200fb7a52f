"""Folders of clips with captions, and what `opensora prepare` makes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from made_clips import moving_square
from video_files import moving_image

from opensora.cli.prepare import main
from opensora.datasets.media import save_image, write_video

FPS = 24
SIZE = (64, 96)


def make_video(path: Path, frames: int = 33, caption: str = "", color: tuple = (250, 40, 30)) -> Path:
    """A clip of one scene of 64x96; the caption, if there is one, is in a .txt file beside it."""
    return _write(path, moving_square(frames, *SIZE, color), caption)


def make_two_scenes(path: Path, first: int, second: int, caption: str = "") -> Path:
    """A clip of two scenes with these numbers of frames."""
    return _write(
        path, np.concatenate([moving_square(first, *SIZE, (250, 40, 30)), moving_image(second, *SIZE)]), caption
    )


def _write(path: Path, frames: np.ndarray, caption: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_video(path, FPS) as write:
        write(frames)
    if caption:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def make_image(path: Path, caption: str = "", size: tuple = SIZE) -> Path:
    save_image(path, moving_image(1, *size)[0])
    if caption:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def prepare(folder: Path, *flags: Any) -> list[dict]:
    """Runs the command, without contact sheets by default; returns the entries of the annotation file."""
    main([str(folder), "--sheet_pages", "0", *map(str, flags)])
    return entries(folder)


def entries(folder: Path) -> list[dict]:
    return json.loads((folder / "prepared/annotation.json").read_text(encoding="utf-8"))


def report(folder: Path) -> str:
    return (folder / "prepared/report.md").read_text(encoding="utf-8")
