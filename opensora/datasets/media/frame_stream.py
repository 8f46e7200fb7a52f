"""Decodes one video file in order of display, with PyAV (FFmpeg)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Optional

import av

from opensora.datasets.media.color import MAX_PIXELS
from opensora.datasets.media.packet_index import Keyframe, PacketIndex
from opensora.errors import UserError

# Containers that hold the video themselves. Playlists, concat scripts and image sequences refer to other files.
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
    """Decoding from a keyframe gave another frame than the packets announce."""


def open_container(path: Path) -> av.container.InputContainer:
    """Opens a file for demuxing: never a protocol, whatever its name, and never a file that refers to others.

    Raises:
        UserError: not a video, or a container that is not read.
    """
    try:
        # not `options`: PyAV 14 and 15 crash on them where streams are found while reading (.mpg)
        container = av.open(f"file:{path}", container_options=OPEN_OPTIONS, metadata_errors="replace")
    except Exception as error:  # PyAV's errors have many types; a bad file must not end the program
        raise UserError(
            f"{path}: not a video that can be read (damaged, empty, or another kind of file; playlists "
            f"are refused): {reason(error)}"
        ) from error
    if not container.streams.video or container.streams.video[0].codec_context is None:
        container.close()
        raise UserError(f"{path}: not a video that can be read: it has no video stream of a known codec")
    return container


def demux(container: av.container.InputContainer) -> Iterator[av.Packet]:
    """The packets of the first video stream; the last one is empty and makes the decoder give its last frames."""
    try:
        yield from container.demux(container.streams.video[0])
    except IndexError:
        pass  # PyAV, after the last packet, if streams have appeared since the file was opened


def reason(error: Exception) -> str:
    """What an exception of PyAV says, without the file name."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class FrameStream:
    """The frames of a file's first video stream, one after the other, from the start or from a keyframe.

    Attributes:
        codec: the decoder's description.
        current: the frame decoded last.
        position: the number of the frame that comes next.
        damage: what is wrong with the file, as far as it was decoded; None if nothing is. Decoding stops at errors.

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
        decoder.thread_type, decoder.thread_count = "NONE", 1  # data workers have a core each
        self.current: Optional[av.VideoFrame] = None
        self.position = 0
        self.damage: Optional[str] = None
        self._index: Optional[PacketIndex] = None  # set by a seek
        self._frames = self._decode(demux(self.container))

    def __enter__(self) -> FrameStream:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        self._frames, self.current = iter(()), None
        self.container.close()

    @property
    def sought(self) -> bool:
        """Whether frames are numbered by the packets' time stamps, not by counting from the start."""
        return self._index is not None

    def advance(self) -> bool:
        """Decodes the next frame into `current`; False at the end or at damage.

        Raises:
            UnexpectedFrame: after a seek, if the frame is not the one that the packets announce.
        """
        frame = next(self._frames, None)
        if frame is None:
            return False
        if self.sought and (self.position >= len(self._index) or frame.pts != self._index.times[self.position]):
            raise UnexpectedFrame
        self.current = frame
        self.position += 1
        return True

    def seek(self, index: PacketIndex, keyframe: Keyframe, number: int) -> bool:
        """Moves to a keyframe, or to one before it, from which frame `number` can be decoded; False if that fails."""
        for time in (keyframe.pts, keyframe.dts):  # containers are indexed by the one or the other
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
        """`since`: leave out frames displayed earlier than this time, which depend on frames before the seek."""
        started = False
        try:
            for packet in packets:
                started = started or packet.is_keyframe
                try:
                    frames = packet.decode()
                except Exception:
                    if started:
                        raise
                    continue  # a stream cut between keyframes begins with packets that nothing can be made of
                if packet.is_corrupt and started:
                    self.damage = self.damage or "a packet is incomplete"
                for frame in frames:
                    if frame.is_corrupt:  # the decoder has filled in what is missing
                        self.damage = self.damage or "a frame is incomplete"
                    if since is None or frame.pts is None or frame.pts >= since:
                        yield frame
        except Exception as error:
            self.damage = f"decoding fails: {reason(error)}"


def count_packets(path: Path) -> int:
    """Packets of the first video stream; 0 where the file is not a video or is damaged."""
    try:
        with open_container(path) as container:
            return sum(packet.size > 0 for packet in demux(container))
    except Exception:
        return 0
