"""References: images and videos whose frames a video keeps, from files and from the web."""

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
    """The paths and URLs joined by `;`; none for None, "" and "None"."""
    if text is None or text.strip() in ("", "None"):
        return []
    return [path.strip() for path in text.split(";")]


def find_reference(path: str, cache_dir: Union[str, Path], allow_local: bool = False) -> Path:
    """The file of a path or URL; what comes from the web is kept in `cache_dir`.

    `allow_local`: URLs may lead to addresses that are not public, see `opensora.utils.download`.

    Raises:
        FileNotFoundError: no such file.
        UserError: neither an image nor a video by its name.
        OSError: a URL that cannot be fetched.
    """
    found = fetch(path, cache_dir, allow_local=allow_local) if is_url(path) else Path(path)
    if found.suffix.lower() not in VIDEO_SUFFIXES + IMAGE_SUFFIXES:
        raise UserError(
            f"reference {path}: neither an image ({' '.join(IMAGE_SUFFIXES)}) nor a video "
            f"({' '.join(VIDEO_SUFFIXES)}) by its name"
        )
    if not found.is_file():
        raise FileNotFoundError(f"reference {path}: no such file")
    return found


def read_reference(path: Path, height: int, width: int) -> Iterator[np.ndarray]:
    """The frames of a video, some at a time, or of an image its one, float32 (3, t, height, width) in [-1, 1].

    Raises:
        UserError: the file cannot be read.
    """
    if path.suffix.lower() in IMAGE_SUFFIXES:
        yield to_float(resize_crop_image(read_image(path), height, width))[:, None]
        return
    with VideoReader(path) as reader:
        reader.check()
        for chunk in reader.chunks(range(len(reader))):
            yield to_float(resize_crop_video(chunk, height, width)).swapaxes(0, 1)
