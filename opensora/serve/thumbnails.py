"""Thumbnails of results."""

from __future__ import annotations

from pathlib import Path

from opensora.datasets.media import VIDEO_SUFFIXES, VideoReader, read_image, save_image

THUMBNAIL = "thumbnail.jpg"


def thumbnail(result: Path) -> Path:
    """The thumbnail of a result, made when it is first asked for."""
    path = result.with_name(THUMBNAIL)
    if not path.is_file():
        if result.suffix in VIDEO_SUFFIXES:
            with VideoReader(result) as reader:
                save_image(path, reader.read([0])[0])
        else:
            save_image(path, read_image(result))
    return path
