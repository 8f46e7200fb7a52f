"""Decodes a video file in display order with PyAV (FFmpeg)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Optional

import av

from opensora.datasets.media.color import MAX_PIXELS
from opensora.datasets.media.packet_index import Keyframe, PacketIndex
from opensora.errors import UserError

# Containers that include the video data. Playlists, concat scripts and image sequences refer to other files.
CONTAINERS = (
    "mov",
    "matroska",
    "webm",
    "avi",
    "gif",
    "mpegts",
    "mpeg",
    "mpegvideo",
    "flv",
    "asf",
    "ogg",
    "mxf",
    "ivf",
    "h264",
    "hevc",
    "m4v",
    "obu",
)
OPEN_OPTIONS = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}


class UnexpectedFrame(Exception):
    """Decoding from a keyframe gave a different frame than the packet index lists."""


def open_container(path: Path) -> av.container.InputContainer:
    """Opens a file for demuxing. Its name is never a protocol, and files that refer to other files are refused.

    Raises:
        UserError: not a video, or an unsupported container.
    """
    try:
        # not `options`: PyAV 14 and 15 crash on them if streams are found while reading (.mpg)
        container = av.open(f"file:{path}", container_options=OPEN_OPTIONS, metadata_errors="replace")
    except Exception as error:  # PyAV raises many types; a corrupt file must not end the program
        raise UserError(
            f"{path}: not a readable video (corrupt, empty, or not a video; playlists are refused): {reason(error)}"
        ) from error
    if not container.streams.video or container.streams.video[0].codec_context is None:
        container.close()
        raise UserError(f"{path}: not a readable video: it has no video stream with a known codec")
    return container


def demux(container: av.container.InputContainer) -> Iterator[av.Packet]:
    """The packets of the first video stream; the last one is empty and flushes the decoder."""
    try:
        yield from container.demux(container.streams.video[0])
    except IndexError:
        pass  # raised by PyAV after the last packet, if streams were found after the file was opened


def reason(error: Exception) -> str:
    """The message of an exception of PyAV, without the file name."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class FrameStream:
    """Decodes the frames of a file's first video stream in order, from the start or from a keyframe.

    Attributes:
        codec: description of the decoder.
        position: the number of the next frame.
        damage: the first fault found in the data decoded so far, or None. Decoding stops at errors.

    Raises:
        UserError: not a video, or frames of more than MAX_PIXELS pixels.
    """

    def __init__(self, path: Path):
        self.container = open_container(path)
        self.stream = self.container.streams.video[0]
        decoder = self.stream.codec_context
        self.codec = decoder.codec
        if decoder.width * decoder.height > MAX_PIXELS:
            self.container.close()
            raise UserError(
                f"{path}: frames of {decoder.width}x{decoder.height} pixels are too large; the limit is "
                f"{MAX_PIXELS} pixels"
            )
        decoder.options = {"max_pixels": str(MAX_PIXELS)}
        decoder.thread_type, decoder.thread_count = "NONE", 1  # each data worker uses one core
        self._current: Optional[av.VideoFrame] = None
        self.position = 0
        self.damage: Optional[str] = None
        self._index: Optional[PacketIndex] = None  # set by a seek
        self._frames = self._decode(demux(self.container))

    def __enter__(self) -> FrameStream:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        self._frames, self._current = iter(()), None
        self.container.close()

    @property
    def current(self) -> av.VideoFrame:
        """The frame decoded last."""
        if self._current is None:
            raise RuntimeError("no frame has been decoded")
        return self._current

    @property
    def has_seeked(self) -> bool:
        """Whether frames are numbered by the packets' time stamps instead of counted from the start."""
        return self._index is not None

    def advance(self) -> bool:
        """Decodes the next frame into `current`; False at the end or at a fault.

        Raises:
            UnexpectedFrame: after a seek, if the frame is not the one in the packet index.
        """
        frame = next(self._frames, None)
        if frame is None:
            return False
        index = self._index
        if index is not None and (self.position >= len(index) or frame.pts != index.times[self.position]):
            raise UnexpectedFrame
        self._current = frame
        self.position += 1
        return True

    def seek(self, index: PacketIndex, keyframe: Keyframe, number: int) -> bool:
        """Seeks to `keyframe` or an earlier one from which frame `number` can be decoded; False if that fails."""
        for time in (keyframe.pts, keyframe.dts):  # containers are indexed by one or the other
            try:
                self.container.seek(time, stream=self.stream, backward=True)
                packets = demux(self.container)
                first = next(packets)
            except Exception:  # StopIteration among them
                return False
            start = index.frame_of_keyframe(first.pts)
            if start is not None and start <= number:
                self._index, self.position = index, start
                self._frames = self._decode(chain([first], packets), first.pts)
                return True
        return False

    def _decode(self, packets: Iterable[av.Packet], since: Optional[int] = None) -> Iterator[av.VideoFrame]:
        """Frames displayed before `since` are dropped: after a seek, they depend on frames that were skipped."""
        started = False
        try:
            for packet in packets:
                started = started or packet.is_keyframe
                try:
                    frames = packet.decode()
                except Exception:
                    if started:
                        raise
                    continue  # a stream cut between keyframes starts with packets that cannot be decoded
                if packet.is_corrupt and started:
                    self.damage = self.damage or "a packet is incomplete"
                for frame in frames:
                    if frame.is_corrupt:  # the decoder has concealed missing data
                        self.damage = self.damage or "a frame is incomplete"
                    if since is None or frame.pts is None or frame.pts >= since:
                        yield frame
        except Exception as error:
            self.damage = f"decoding fails: {reason(error)}"


def count_packets(path: Path) -> int:
    """Number of packets of the first video stream; 0 if the file is corrupt or not a video."""
    try:
        with open_container(path) as container:
            return sum(packet.size > 0 for packet in demux(container))
    except Exception:
        return 0
