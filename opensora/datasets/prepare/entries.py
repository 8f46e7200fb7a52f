"""Makes the entries of an annotation file from captions and surveys; writes that file and the one that lists it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from opensora.datasets.media import IMAGE_SUFFIXES
from opensora.datasets.prepare.captions import Caption
from opensora.datasets.prepare.cuts import divide, scenes
from opensora.datasets.prepare.survey import Survey
from opensora.datasets.t2v.annotations import Source, read_items
from opensora.datasets.t2v.entries import MAX_FPS, MIN_FPS
from opensora.datasets.t2v.selection import DEFAULT_FPS
from opensora.utils.files import atomic_write


def make_entries(
    name: str, caption: Caption, survey: Survey, scene_cuts: bool, max_seconds: Optional[float]
) -> list[dict[str, Any]]:
    """The annotations of a file: one for an image, one for each scene of a video.

    Args:
        name: path in the folder.
        scene_cuts: False: a video is a single scene.
        max_seconds: scenes that are longer are divided; None: no limit.
    """
    entry = {"path": name, "cap": caption, "resolution": {"height": survey.height, "width": survey.width}}
    if name.lower().endswith(IMAGE_SUFFIXES):
        return [entry]
    fps = survey.fps if MIN_FPS <= survey.fps <= MAX_FPS else None
    rate = fps or DEFAULT_FPS
    segments = scenes(survey.frames, survey.cuts if scene_cuts else [])
    if max_seconds is not None:
        longest = max(1, int(max_seconds * rate))
        segments = [segment for start, end in segments for segment in divide(start, end, longest)]
    return [
        {
            **entry,
            "num_frames": end - start,
            **({"fps": fps} if fps else {}),
            "duration": round((end - start) / rate, 3),
            "cut": [start, end],
        }
        for start, end in segments
    ]


def label(entry: Mapping[str, Any], entries_of: Mapping[str, int]) -> str:
    """The name of a sample: the path, and the frames if the file has several samples.

    Args:
        entries_of: path -> number of its samples.
    """
    if entries_of[entry["path"]] == 1:
        return entry["path"]
    start, end = entry["cut"]
    return f"{entry['path']}, frames {start} to {end - 1}"


def write_annotation(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Writes a json list with one entry per line. The former file stays until the new one is complete.

    If it differs, it is kept as `PATH.previous.json`, because it may have been edited. Otherwise nothing is written,
    so that the index of training stays valid.
    """
    content = ("[\n" + ",\n".join(map(_to_json, entries)) + "\n]\n").encode()
    former = path.read_bytes() if path.is_file() else None
    if former == content:
        return
    if former is not None:
        _write(path.with_suffix(".previous.json"), former)
    _write(path, content)


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def write_data_file(path: Path, source: Source) -> None:
    """Writes the file that `read_data_file` reads."""
    _write(path, f"{source.root},{source.annotation}\n".encode())


def read_captions(path: Path) -> dict[str, Any]:
    """Path -> caption of an annotation file; empty if there is none or it cannot be read."""
    try:
        return {item["path"]: item.get("cap") for item in read_items(path)}
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return {}


def _to_json(entry: Mapping[str, Any]) -> str:
    text = json.dumps(entry, ensure_ascii=False)
    try:
        text.encode()
        return text
    except UnicodeEncodeError:  # a file name that is not UTF-8
        return json.dumps(entry)
