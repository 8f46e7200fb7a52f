"""Contact sheets of samples: the first, middle and last frame of each, with its name and caption."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Union

import numpy as np
from PIL import Image
from tqdm import tqdm

from opensora.datasets.broken import printable
from opensora.datasets.file_reading import read_files
from opensora.datasets.media import IMAGE_SUFFIXES, VideoReader, read_image, save_image
from opensora.datasets.media.images import draw_grid, evenly_spaced, read_comment
from opensora.datasets.prepare.entries import label
from opensora.datasets.t2v.probing import signature

ROWS, COLUMNS = 20, 3  # samples of a page, and frames of a sample
HEIGHT, MAX_WIDTH = 120, 400  # pixels of a frame

Segments = Sequence[tuple[int, int]]


def draw_sheets(folder: Path, root: Path, entries: Sequence[dict], pages: int) -> int:
    """Writes page-001.jpg, page-002.jpg ... Pages whose samples have not changed are kept; surplus pages are removed.

    Args:
        root: the folder of the clips.
        pages: at most this many; further samples are left out.

    Returns:
        The number of samples shown.
    """
    shown = entries[: pages * ROWS]
    entries_of = Counter(entry["path"] for entry in entries)
    starts = range(0, len(shown), ROWS)
    current = {folder / f"page-{number:03}.jpg": shown[start : start + ROWS] for number, start in enumerate(starts, 1)}
    for path in folder.glob("page-*.jpg"):
        if path not in current:
            path.unlink()
    for path, rows in tqdm(current.items(), "contact sheets", delay=1, leave=False):
        digest = _digest(root, rows)
        if read_comment(path) != digest:
            _draw_page(path, root, rows, entries_of, digest)
    return len(shown)


def _digest(root: Path, entries: Sequence[dict]) -> str:
    """Changes when a sample of the page changes, or its file."""
    content = [[entry, signature(root / entry["path"])] for entry in entries]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _draw_page(path: Path, root: Path, entries: Sequence[dict], entries_of: Mapping[str, int], digest: str) -> None:
    segments: dict[str, list[tuple[int, int]]] = {}
    for entry in entries:
        segments.setdefault(str(root / entry["path"]), []).append(tuple(entry.get("cut", (0, 1))))
    frames: dict[str, Union[list, str]] = dict(read_files(list(segments), partial(_read_frames, segments), 1))
    strips, labels = [], []
    for entry in entries:
        file = str(root / entry["path"])
        found = frames[file]
        if isinstance(found, str):
            strips.append(np.full((1, HEIGHT, HEIGHT, 3), 128, np.uint8))
            labels.append((label(entry, entries_of), printable(found)))
        else:
            strips.append(found[segments[file].index(tuple(entry.get("cut", (0, 1))))])
            labels.append((f"{label(entry, entries_of)}: {_length(entry)}", _one_line(entry["cap"])))
    save_image(path, draw_grid(strips, labels=[[printable(line) for line in lines] for lines in labels]), digest)


def _length(entry: Mapping[str, Any]) -> str:
    size = f"height x width {entry['resolution']['height']}x{entry['resolution']['width']}"
    return f"{entry['num_frames']} frames, {entry['duration']:g} s, {size}" if "cut" in entry else size


def _one_line(caption: Union[str, list[str]]) -> str:
    text = caption if isinstance(caption, str) else " | ".join(caption)
    return " ".join(text.split())


def _read_frames(segments: Mapping[str, Segments], path: str) -> list[np.ndarray]:
    """For each segment of a file up to COLUMNS frames, uint8 (t, HEIGHT, w, 3)."""
    if path.lower().endswith(IMAGE_SUFFIXES):
        return [_shrink(read_image(path)[None])]
    with VideoReader(path) as reader:
        return [_shrink(reader.read(start + evenly_spaced(end - start, COLUMNS))) for start, end in segments[path]]


def _shrink(frames: np.ndarray) -> np.ndarray:
    height, width = frames.shape[1:3]
    size = (min(MAX_WIDTH, max(1, round(width * HEIGHT / height))), HEIGHT)
    return np.stack([np.asarray(Image.fromarray(frame).resize(size)) for frame in frames])
