"""Converts decoded video frames to RGB as video players show them: upright, with square pixels.

The conversion is an FFmpeg filter graph with the filters and flags that the ffmpeg program inserts. The result equals
`ffmpeg -i FILE -f rawvideo -pix_fmt rgb24` bit for bit (with `-vf scale=WIDTH:HEIGHT` for non-square pixels).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from typing import Any, Optional

import av
import numpy as np

from opensora.errors import UserError
from opensora.utils.logs import logger

MAX_PIXELS = 1 << 26  # 8192 x 8192; a frame is 200 MB of RGB
HDR_TRANSFERS = {16: "PQ", 18: "HLG"}  # code points of ITU-T H.273


class RgbConverter:
    """Converts the frames of one stream to RGB of a single size.

    Non-square pixels are made square by scaling the width, as ffplay does. Later frames of a different size are scaled
    to the size of the first frame, as ffmpeg does.

    Args:
        frame: the first frame of the stream.
        sample_aspect: width of a pixel divided by its height; None means unknown and counts as square.

    Attributes:
        height, width: of the converted frames.
        orientation: the filters that make frames upright, such as "transpose=clock"; empty if they are.
        keeps_geometry: whether stored frames already have this size and orientation.

    Raises:
        UserError: more than MAX_PIXELS pixels.
    """

    def __init__(self, frame: av.VideoFrame, sample_aspect: Optional[Fraction]):
        self._orientation = orientation_filters(display_matrix(frame))
        width, height = frame.width, frame.height
        if sample_aspect and sample_aspect > 0:
            width = max(1, round(width * sample_aspect))
        if width * height > MAX_PIXELS:
            raise UserError(f"frames of {width}x{height} pixels are too large; the limit is {MAX_PIXELS} pixels")
        if any(name == "transpose" for name, _ in self._orientation):
            width, height = height, width
        self.width, self.height = width, height
        self.orientation = ",".join(f"{name}={value}" if value else name for name, value in self._orientation)
        self.keeps_geometry = not self._orientation and (width, height) == (frame.width, frame.height)
        self._format: Optional[str] = None
        self._graph: Optional[av.filter.Graph] = None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """uint8 RGB (height, width, 3)."""
        frame_format = (
            f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000:"
            f"colorspace={int(frame.colorspace)}:range={int(frame.color_range)}"
        )
        if self._graph is None or frame_format != self._format:
            self._format, self._graph = frame_format, self._build_graph(frame_format)
        self._graph.vpush(frame)
        return self._graph.vpull().to_ndarray()

    def _build_graph(self, frame_format: str) -> av.filter.Graph:
        graph = av.filter.Graph()
        if hasattr(graph, "threads"):  # from PyAV 18 on; in earlier versions FFmpeg starts threads that stay idle
            graph.threads = 1
        nodes = [
            graph.add("buffer", frame_format),
            *(graph.add(name, arguments) for name, arguments in self._orientation),
            graph.add("scale", f"{self.width}:{self.height}:flags=bicubic:threads=1"),
            graph.add("format", "pix_fmts=rgb24"),
            graph.add("buffersink"),
        ]
        graph.link_nodes(*nodes).configure()
        return graph


def display_matrix(frame: av.VideoFrame) -> Optional[Sequence[int]]:
    """The 3x3 matrix (row-major, 16.16 fixed point) that maps stored pixels to displayed ones, if the file has one."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")  # PyAV's type does not declare the buffer protocol
    return struct.unpack("=9i", bytes(data)) if data is not None else None


def orientation_filters(matrix: Optional[Sequence[int]]) -> list[tuple[str, Optional[str]]]:
    """FFmpeg filters, as (name, arguments), that apply a display matrix: rotation by 90 degree steps and mirroring.

    The rotation angle alone is ambiguous: it is 180 degrees for a video that is only mirrored.
    """
    if matrix is None:
        return []
    a, b, _, c, d = matrix[:5]  # x' = a x + c y, y' = b x + d y
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return [(name, None) for name, flipped in (("hflip", a < 0), ("vflip", d < 0)) if flipped]
    direction = {
        (True, True): "cclock_flip",
        (True, False): "clock",
        (False, True): "cclock",
        (False, False): "clock_flip",
    }[b > 0, c > 0]
    return [("transpose", direction)]


@cache
def note_hdr(transfer: int) -> None:
    """Prints a note, once per process, that HDR video is not tone-mapped."""
    logger.warning(
        f"{HDR_TRANSFERS[transfer]} (HDR) video is converted to RGB without tone mapping and looks flat; "
        "convert it to SDR first if that matters"
    )
