"""What is found out about a media file when it is decoded once: size, length, damage and cuts."""

from __future__ import annotations

from typing import NamedTuple

import av

from opensora.datasets import broken
from opensora.datasets.media import IMAGE_SUFFIXES, VideoReader
from opensora.datasets.prepare.cuts import CutDetector
from opensora.datasets.t2v.probing import Probe, read_media
from opensora.errors import UserError

PROGRESS_FRAMES = 256  # long videos may take longer than the time limit of a file, these frames may not


class Survey(NamedTuple):
    """Properties of a media file; of an image only the size.

    height, width: in pixels, upright.
    fps: frames per second; 0: unknown.
    frames: number of frames that can be decoded.
    orientation: how the stored frames are turned, see `VideoReader`; empty if they are upright.
    damage: why the file cannot be decoded to its end; empty if it can.
    cut_text: the frames that start a new scene, separated by spaces.
    """

    height: int
    width: int
    fps: float
    frames: int
    orientation: str = ""
    damage: str = ""
    cut_text: str = ""

    @property
    def cuts(self) -> list[int]:
        return [int(number) for number in self.cut_text.split()]


def survey(path: str) -> Survey:
    """Decodes a video or an image; raises as `VideoReader` and `read_image`."""
    if path.lower().endswith(IMAGE_SUFFIXES):
        return Survey(*read_media(path))
    with VideoReader(path) as reader:
        fps = float(reader.fps or 0)
        detector, visited = CutDetector(fps), 0

        def visit(frame: av.VideoFrame) -> None:
            nonlocal visited
            detector.add(frame)
            visited += 1
            if visited % PROGRESS_FRAMES == 0:
                broken.monitor.begin(path)

        reader.visit(visit)
        damage = ""
        try:
            reader.check()
        except UserError as error:
            damage = str(error)
        cuts = " ".join(map(str, detector.cuts()))
        return Survey(reader.height, reader.width, fps, len(reader), reader.orientation, damage, cuts)


# The number in the table's name increases when the detection of cuts changes.
SURVEY = Probe("survey_1", Survey, survey, "reading files", batch_size=1)
