"""Validates an entry of an annotation file: the type and range of every key."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Optional

from opensora.datasets.broken import printable
from opensora.datasets.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from opensora.datasets.t2v.annotations import InvalidLine
from opensora.errors import UserError
from opensora.utils.numbers import finite_number, is_missing, whole_number
from opensora.utils.text_files import check_characters

MAX_SIDE = 1 << 16  # pixels
MAX_FRAMES = 10**8
MIN_FPS, MAX_FPS = 0.01, 1000.0
MAX_SCORE = 100.0  # aesthetic predictors return about 0 to 10


def check_entry(item: Any) -> dict:
    """Validates and normalizes an entry; unknown keys are dropped.

    Returns:
        path: of the file.
        cap: a text or a list of texts, or None.
        aes: the aesthetic score, or None.
        crop: [left, right, top, bottom], or None.
        resolution: {"height", "width"} after the crop, or None.
        start, num_frames, fps: of videos only; the last two may be None.
        is_range: of videos only; whether `frame_idx` gives the frames.

    Raises:
        UserError: an invalid entry; the message names the key, the value and what is expected.
    """
    if isinstance(item, InvalidLine):
        raise UserError(item.reason)
    if not isinstance(item, dict):
        raise UserError(f"{_short(item)} should be an object with `path` and `cap`")
    is_video = check_is_video(item)
    crop = _crop(item.get("crop"))
    entry = {
        "path": item["path"],
        "cap": _caption(item.get("cap")),
        "aes": _score(item),
        "crop": crop,
        "resolution": _resolution(item.get("resolution"), crop),
    }
    return {**entry, **_frames(item)} if is_video else entry


def check_is_video(item: dict) -> bool:
    """Whether the sample is a video or an image, by its suffix; raises UserError if it is neither."""
    path = item.get("path")
    if not isinstance(path, str) or not path:
        raise UserError(f"{_short(item)}: has no `path`")
    if "\0" in path:
        raise UserError(f"path {_short(path)}: a path cannot contain a NUL character")
    suffix = PurePosixPath(path).suffix.lower()
    if suffix not in VIDEO_SUFFIXES + IMAGE_SUFFIXES:
        raise UserError(
            f"{printable(path)}: the suffix is neither that of a video ({', '.join(VIDEO_SUFFIXES)}) "
            f"nor that of an image ({', '.join(IMAGE_SUFFIXES)})"
        )
    return suffix in VIDEO_SUFFIXES


def _caption(value: Any) -> Any:
    if is_missing(value) and not isinstance(value, str):
        return None
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"cap {_short(value)}: should be a text or a list of texts")
    for text in texts:
        check_characters(text, f"cap {_short(value)}")
    return value


def _score(item: dict) -> Optional[float]:
    for key in ("aesthetic", "aes"):
        if not is_missing(item.get(key)):
            return finite_number(item[key], key, -MAX_SCORE, MAX_SCORE)
    return None


def _crop(value: Any) -> Optional[list]:
    if not value:
        return None
    if not isinstance(value, list) or len(value) != 4:
        raise UserError(f"crop {_short(value)}: should be [left, right, top, bottom]")
    left, right, top, bottom = (whole_number(side, "crop", 0, MAX_SIDE) for side in value)
    if left >= right or top >= bottom:
        raise UserError(f"crop {value}: should be [left, right, top, bottom]")
    return [left, right, top, bottom]


def _resolution(value: Any, crop: Optional[list]) -> Optional[dict]:
    if value is None or value == {}:
        return {"height": crop[3] - crop[2], "width": crop[1] - crop[0]} if crop else None
    if not isinstance(value, dict):  # the order of a list such as [64, 96] is ambiguous
        raise UserError(f'resolution {_short(value)}: should be {{"height": 720, "width": 1280}}')
    sides = {
        name: whole_number(value[name], f"resolution: {name}", 0, MAX_SIDE)
        for name in ("height", "width")
        if value.get(name) is not None
    }
    return sides if len(sides) == 2 and all(sides.values()) else None


def _frames(item: dict) -> dict:
    fps = None if item.get("fps") in (None, 0) else finite_number(item["fps"], "fps", MIN_FPS, MAX_FPS)
    count = None if item.get("num_frames") is None else _frame_number(item["num_frames"], "num_frames")
    start, end = _cut(item.get("cut")) if item.get("cut") else (0, None)
    is_range = item.get("frame_idx") is not None
    if is_range:
        start, end = _range(item["frame_idx"])
        count = min(count or MAX_FRAMES, end - start)
    elif not count and end is not None and end > start:
        count = end - start
    return {"start": start, "num_frames": count or None, "fps": fps, "is_range": is_range}


def _cut(value: Any) -> tuple[int, Optional[int]]:
    """[first frame, end frame (exclusive)]; the second may be missing."""
    if not isinstance(value, list) or len(value) > 2:
        raise UserError(f"cut {_short(value)}: should be [first frame, end frame]")
    start, *end = value
    return _frame_number(start, "cut"), int(finite_number(end[0], "cut")) if end and end[0] is not None else None


def _range(value: Any) -> tuple[int, int]:
    """First and end frame (exclusive) of "0:513" or [0, 513]."""
    limits = value.split(":") if isinstance(value, str) else value
    if not isinstance(limits, list) or len(limits) != 2:
        raise UserError(f'frame_idx {_short(value)}: should be "first:end", such as "0:513"')
    start, end = (_frame_number(limit, "frame_idx") for limit in limits)
    if start >= end:
        raise UserError(f"frame_idx {_short(value)}: the range is empty")
    return start, end


def _frame_number(value: Any, name: str) -> int:
    return whole_number(value, name, 0, MAX_FRAMES)


def _short(value: Any) -> str:
    text = ascii(value) if not isinstance(value, str) else f"'{printable(value)}'"
    return text if len(text) <= 80 else f"{text[:77]}..."
