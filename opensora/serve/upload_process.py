"""A process that decodes one upload: `python -m opensora.serve.upload_process FILE FOLDER LIMITS`.

Files of strangers may be built to exhaust a decoder, or to exploit one. The process has limits of time, memory and file
size, and writes what it has decoded into FOLDER, image.png or video.mp4. It prints a line of JSON, {"kind", "width",
"height", "frames", "fps"} or {"error"}.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opensora.errors import UserError
from opensora.process.control import die_with_parent

CPU_SECONDS = 120
MEMORY = 3 << 30  # bytes of address space
FRAMES = 1024  # of a clip
PIXELS = 4096 * 4096  # of a frame
ALL_PIXELS = 1 << 31  # of a clip's frames together


def limit_resources(file_bytes: int) -> None:
    """Bounds this process and those that it starts."""
    for kind, limit in (
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (limit, limit))


def decode(path: Path, folder: Path) -> dict[str, Any]:
    """Writes the decoded copy of an image or a video.

    Raises:
        UserError: neither, or too large.
    """
    if is_image(path):
        return _decode_image(path, folder)
    return _decode_video(path, folder)


def is_image(path: Path) -> bool:
    """Whether the content is that of an image file; animated images count as videos."""
    from PIL import Image

    from opensora.datasets.media.images import FORMATS

    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            animated = getattr(image, "n_frames", 1) > 1
    except Image.DecompressionBombError as error:
        raise UserError(f"the image is too large; the limit is {PIXELS} pixels") from error
    except Exception:  # Pillow's plugins raise almost any exception on files that are no images
        return False
    _check_pixels(width, height)
    return not animated


def _decode_image(path: Path, folder: Path) -> dict[str, Any]:
    from opensora.datasets.media import read_image, save_image

    image = read_image(path)
    save_image(folder / "image.png", image)
    return {"kind": "image", "width": image.shape[1], "height": image.shape[0], "frames": 1, "fps": 0.0}


def _decode_video(path: Path, folder: Path) -> dict[str, Any]:
    from opensora.datasets.media import VideoReader, write_video

    count = 0
    with VideoReader(path) as reader:
        _check_pixels(reader.width, reader.height)
        most = min(FRAMES, ALL_PIXELS // (reader.width * reader.height))
        fps = reader.fps if 0 < reader.fps <= 240 else 24.0
        expected = reader.expected_frames()
        if expected > most:
            raise UserError(f"the video has {expected} frames; the limit for its size is {most}")
        frames = len(reader)
        if frames > most:
            raise UserError(f"the video has {frames} frames; the limit for its size is {most}")
        reader.check()  # truncated and damaged files are refused
        with write_video(folder / "video.mp4", fps) as write:
            for chunk in reader.chunks(range(frames)):
                write(chunk)
                count += len(chunk)
        return {"kind": "video", "width": reader.width, "height": reader.height, "frames": count, "fps": fps}


def _check_pixels(width: int, height: int) -> None:
    if width * height > PIXELS:
        raise UserError(f"frames of {width}x{height} pixels are too large; the limit is {PIXELS} pixels")


def main() -> None:
    die_with_parent(os.getppid())
    path, folder, file_bytes = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    limit_resources(file_bytes)
    answer: Mapping[str, Any]
    try:
        answer = decode(path, folder)
    except (UserError, OSError) as error:
        answer = {"error": str(error).replace(f"{path}: ", "").replace(str(path), "the file")}
    except MemoryError:
        answer = {"error": "decoding it takes too much memory"}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
