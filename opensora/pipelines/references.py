"""References: conditioning images and videos of long videos, from files and URLs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Optional, Union

import numpy as np

from opensora.datasets.bucketed.resize import resize_crop_image, resize_crop_video
from opensora.datasets.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, VideoReader, read_image
from opensora.datasets.transforms import to_float
from opensora.errors import UserError
from opensora.utils.download import fetch, is_url


def split_paths(text: Optional[str]) -> list[str]:
    """The paths and URLs of a list separated by `;`; an empty list for None, "" and "None"."""
    if text is None or text.strip() in ("", "None"):
        return []
    return [path.strip() for path in text.split(";")]


def find_reference(path: str, cache_dir: Union[str, Path], allow_local: bool = False) -> Path:
    """The file of a path or URL; downloads are cached in `cache_dir`.

    Args:
        allow_local: URLs may have addresses that are not public, see `opensora.utils.download`.

    Raises:
        FileNotFoundError: no such file.
        UserError: neither an image nor a video by its suffix.
        OSError: a URL that cannot be fetched.
    """
    found = fetch(path, cache_dir, allow_local=allow_local) if is_url(path) else Path(path)
    if found.suffix.lower() not in VIDEO_SUFFIXES + IMAGE_SUFFIXES:
        raise UserError(
            f"reference {path}: the suffix is neither that of an image ({' '.join(IMAGE_SUFFIXES)}) nor of a video "
            f"({' '.join(VIDEO_SUFFIXES)})"
        )
    if not found.is_file():
        raise FileNotFoundError(f"reference {path}: no such file")
    return found


def read_reference(path: Path, height: int, width: int) -> Iterator[np.ndarray]:
    """Yields the frames of a video in chunks, or an image as one frame: float32 (3, t, height, width) in [-1, 1].

    Raises:
        UserError: the file is damaged.
    """
    if path.suffix.lower() in IMAGE_SUFFIXES:
        yield to_float(resize_crop_image(read_image(path), height, width))[:, None]
        return
    with VideoReader(path) as reader:
        reader.check()
        for chunk in reader.chunks(range(len(reader))):
            yield to_float(resize_crop_video(chunk, height, width)).swapaxes(0, 1)
