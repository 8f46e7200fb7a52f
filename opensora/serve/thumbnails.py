"""Thumbnails of results."""

from __future__ import annotations

from pathlib import Path

from opensora.datasets.media import VIDEO_SUFFIXES, VideoReader, read_image, save_image

THUMBNAIL = "thumbnail.jpg"


def thumbnail(result: Path) -> Path:
    """The thumbnail of a result. It is made here where a worker was killed between the video and its thumbnail."""
    path = result.with_name(THUMBNAIL)
    if not path.is_file():
        if result.suffix in VIDEO_SUFFIXES:
            with VideoReader(result) as reader:
                save_image(path, reader.read([0])[0])
        else:
            save_image(path, read_image(result))
    return path
