"""Detects truncated video files by container size. FFmpeg reports no error if a file ends between two frames."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

EBML_HEADER, SEGMENT = bytes.fromhex("1a45dfa3"), bytes.fromhex("18538067")


def is_truncated(path: Path, container_format: str) -> bool:
    """Whether an MP4/MOV or Matroska/WebM file is shorter than its outermost headers say; False for other containers.

    Args:
        container_format: FFmpeg's name of the container, such as "mov,mp4,m4a,3gp,3g2,mj2".
    """
    ends = {"mov": _mp4_end, "matroska": _matroska_end}.get(container_format.split(",")[0])
    if ends is None:
        return False
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        return ends(file, size) > size


def _mp4_end(file: BinaryIO, size: int) -> int:
    """End of the last top-level box (ISO/IEC 14496-12, 4.2)."""
    position = 0
    while position + 8 <= size:
        file.seek(position)
        header = file.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:  # a 64-bit size follows the type
            length = int.from_bytes(header[8:], "big")
        if length < 8:  # 0: extends to the end of the file; 1 .. 7: not a box
            return size
        position += length
    return position


def _matroska_end(file: BinaryIO, size: int) -> int:
    """End of the segment (RFC 8794, 4 to 6); an unknown size, as in live recordings, extends to the end of the file."""
    if file.read(4) != EBML_HEADER:
        return size
    file.seek(_element_size(file), os.SEEK_CUR)
    if file.read(4) != SEGMENT:
        return size
    length = _element_size(file)
    return size if length < 0 else file.tell() + length


def _element_size(file: BinaryIO) -> int:
    """Reads an EBML variable-length size; -1 if it is unknown (all bits set)."""
    first = file.read(1)
    if not first or not first[0]:
        return -1
    length = 9 - first[0].bit_length()  # in bytes
    value = int.from_bytes(first + file.read(length - 1), "big") & ((1 << 7 * length) - 1)
    return -1 if value == (1 << 7 * length) - 1 else value
