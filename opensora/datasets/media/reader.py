"""Reads frames of video files by number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Callable, Optional, Union

import av
import numpy as np

from opensora.datasets.media.color import HDR_TRANSFERS, MAX_PIXELS, RgbConverter, note_hdr
from opensora.datasets.media.decord_reader import DecordReader, import_decord
from opensora.datasets.media.frame_stream import FrameStream, UnexpectedFrame, demux, open_container
from opensora.datasets.media.packet_index import PacketIndex, index_packets
from opensora.datasets.media.truncation import is_truncated
from opensora.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif", ".mpg", ".mpeg", ".ts")
BACKENDS = ("decord", "opencv", "pyav")
BATCH = 16  # frames that `chunks` converts at a time; bounds memory
SHORT_GAP = 16  # frames; smaller gaps are decoded without a seek

Indices = Union[Sequence[int], np.ndarray]
OnFrame = Callable[[av.VideoFrame], None]


class VideoReader:
    """The frames of a video file: uint8 RGB, upright, with square pixels, numbered in display order.

    The frames are those that FFmpeg decodes: edit lists are applied, a variable frame rate is not resampled. Random
    access seeks to keyframes if the packets' time stamps determine the frame numbers; otherwise it decodes from the
    start. There is one decoding thread, and only the requested frames are held in memory.

    Args:
        path: the file. Files that refer to other files (playlists) are refused.
        backend: None or "pyav": PyAV. "decord": decord for files that it reads correctly, PyAV for all others.
            "opencv" is accepted for compatibility and means PyAV.

    Attributes:
        height, width: of the frames, after rotation and scaling to square pixels.
        fps: frames per second; 0.0 if unknown (some files with a single frame).
        orientation: how stored frames are turned or mirrored, as FFmpeg's filters: "transpose=clock", "hflip,vflip";
            empty if they are upright.

    Raises:
        FileNotFoundError: no such file.
        UserError: no frame can be decoded, frames of more than 67 million pixels, or an unknown backend.
    """

    def __init__(self, path: Union[str, Path], backend: Optional[str] = None):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file")
        if backend not in (None, *BACKENDS):
            raise UserError(f"unknown video backend {backend!r}; choose from {', '.join(BACKENDS)}")
        if backend == "decord":
            import_decord()
        self._count: Optional[int] = None  # unknown before _scan
        self._damage: Optional[str] = None
        self._packets: Optional[PacketIndex] = None
        self._indexed = False  # whether the file was searched for packets
        self._stream = FrameStream(self.path)
        try:
            self._convert = self._make_converter()
        except BaseException:
            self.close()
            raise
        self.height, self.width = self._convert.height, self._convert.width
        self.fps, self.orientation = frame_rate(self._stream.stream), self._convert.orientation
        self._decord: Optional[DecordReader] = None
        if backend == "decord" and self._convert.keeps_geometry:
            self._decord = DecordReader.open(self.path, self._packet_index(), (self.height, self.width))

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        self._stream.close()
        self._decord = None

    def __len__(self) -> int:
        """Number of frames that can be decoded; decodes the whole file once."""
        return self._scan()

    def expected_frames(self) -> int:
        """Number of frames according to the packets or the header, without decoding if possible.

        An estimate, until the frames have been counted by `len` or `check`.
        """
        if self._count is not None:
            return self._count
        packets = self._packet_index()
        if packets is not None:
            return len(packets)
        return self._stream.stream.frames or len(self)

    def visit(self, on_frame: OnFrame) -> None:
        """Decodes the whole file and calls `on_frame` with each frame; `len` and `check` need not decode it again."""
        self._count = None
        self._scan(on_frame)

    def check(self) -> None:
        """Decodes the whole file once.

        Raises:
            UserError: the file is corrupt or truncated.
        """
        self._scan()
        if self._damage:
            announced = self._stream.stream.frames
            promise = f", its header promises {announced}" if announced else ""
            raise UserError(
                f"{self.path}: damaged: {self._count} frames can be read{promise} ({self._damage}); "
                "replace the file or exclude it"
            )

    def read(self, indices: Indices) -> np.ndarray:
        """Reads frames by number, in the given order: uint8 RGB (len(indices), H, W, 3).

        Raises:
            UserError: the file has fewer frames, or cannot be decoded that far.
        """
        return next(self.chunks(indices, max(1, len(indices))))

    def chunks(self, indices: Indices, size: int = BATCH) -> Iterator[np.ndarray]:
        """As `read`, but yields `size` frames at a time: long videos in constant memory."""
        numbers = [int(index) for index in indices]
        if not numbers or min(numbers) < 0:
            raise UserError(f"{self.path}: frames {numbers} requested; give at least one number, counted from 0")
        for start in range(0, len(numbers), size):
            yield self._read(numbers[start : start + size], needed=max(numbers) + 1)

    def _read(self, indices: list[int], needed: int) -> np.ndarray:
        """`needed`: number of frames that the whole request needs, for the error message."""
        if self._decord is not None:
            frames = self._decord.read(indices)
            if frames is not None:
                return frames
            self._decord = None
        frames = np.empty((len(indices), self.height, self.width, 3), np.uint8)
        previous = None
        for place in np.argsort(indices, kind="stable"):
            if previous is not None and indices[place] == indices[previous]:
                frames[place] = frames[previous]
            else:
                frames[place] = self._rgb(indices[place], needed)
            previous = place
        return frames

    def _rgb(self, index: int, needed: int) -> np.ndarray:
        if not self._decode_to(index):
            reason = f" ({self._stream.damage})" if self._stream.damage else ""
            raise UserError(f"{self.path}: {needed} frames needed, {self._stream.position} can be read{reason}")
        try:
            return self._convert(self._stream.current)
        except Exception as error:  # raised by FFmpeg's filters
            raise UserError(f"{self.path}: frame {index} cannot be converted to RGB: {error}") from error

    def _decode_to(self, index: int) -> bool:
        """Decodes until the stream's `current` is frame `index`; False if the stream ends before it."""
        if not self._stream.position - 1 <= index < self._stream.position + SHORT_GAP:
            self._seek_before(index)
        try:
            while self._stream.position <= index:
                if not self._stream.advance():
                    if not self._stream.has_seeked:
                        return False
                    raise UnexpectedFrame
        except UnexpectedFrame:
            self._restart()
            self._packets = None  # decoded frames differ from the packet index: count from the start from now on
            return self._decode_to(index)
        return True

    def _seek_before(self, index: int) -> None:
        """Moves the stream to the last keyframe before `index`, or to the start, unless it is already in between."""
        packets, position = self._packet_index(), self._stream.position
        if packets is not None and index < len(packets):
            keyframe = packets.keyframe_before(index)
            if keyframe.number <= position - 1 <= index:
                return
            if keyframe.number > 0:
                if not self._stream.seek(packets, keyframe, index):
                    self._restart()
                    self._packets = None
                return
        if index < position - 1:
            self._restart()

    def _restart(self) -> None:
        self._stream.close()
        self._stream = FrameStream(self.path)

    def _packet_index(self) -> Optional[PacketIndex]:
        """The packet index, made on first use; None if packets do not determine the frames."""
        if not self._indexed:
            self._indexed = True
            try:
                with open_container(self.path) as container:
                    packets = index_packets(self._stream.codec, container.format.name, demux(container))
            except Exception:  # raised by PyAV for a corrupt file; decoding finds the readable frames
                packets = None
            if packets is not None and packets.times[0] == self._first_time:
                self._packets = packets
        return self._packets

    def _scan(self, on_frame: OnFrame = lambda frame: None) -> int:
        """Decodes the whole file once, to find faults and to count the frames; returns their number."""
        if self._count is not None:
            return self._count
        with FrameStream(self.path) as stream:
            while stream.advance():
                on_frame(stream.current)
            self._count, self._damage = stream.position, stream.damage
            if self._damage is None and is_truncated(self.path, stream.container.format.name):
                self._damage = "the file ends too early"
        if self._packets is not None and len(self._packets) != self._count:
            self._packets = None
        return self._count

    def _make_converter(self) -> RgbConverter:
        """Decodes the first frame, which determines the size and orientation of all frames."""
        stream = self._stream.stream
        if stream.codec_context.color_trc in HDR_TRANSFERS:
            note_hdr(stream.codec_context.color_trc)
        try:
            if not self._stream.advance():
                raise UserError(
                    f"no frame of at most {MAX_PIXELS} pixels can be decoded "
                    f"({self._stream.damage or 'no frame found'})"
                )
            self._first_time = self._stream.current.pts
            return RgbConverter(self._stream.current, stream.sample_aspect_ratio)
        except ValueError as error:
            raise UserError(f"{self.path}: not a readable video: {error}") from error


def frame_rate(stream: av.VideoStream) -> float:
    """Frames per second; 0.0 if unknown.

    FFmpeg's guess is preferred to the average rate, which the duration of the last frame distorts, unless the guess is
    the tick rate of the container's clock.
    """
    guessed, average = (float(rate or 0) for rate in (stream.guessed_rate, stream.average_rate))
    return average if average and not 0 < guessed <= 2 * average else guessed
