"""Frames of video files by number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional, Union

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
BATCH = 16  # frames converted at a time by `chunks`: bounds memory
SHORT_GAP = 16  # up to this many frames are decoded without looking for a keyframe to seek to


class VideoReader:
    """The frames of one video file: uint8 RGB, upright, with square pixels, numbered in order of display.

    Frames are those that FFmpeg decodes: edit lists are applied, a variable frame rate is not resampled. Random access
    seeks to keyframes where the packets' time stamps determine the frame numbers, and decodes from the start elsewhere.
    One decoding thread; no more frames are held than are asked for at a time.

    Attributes:
        height, width: of the frames, after rotation and scaling to square pixels.
        fps: frames per second, 0.0 where the file does not say (some files with a single frame).

    Args:
        path: the file. Files that refer to other files (playlists) are refused.
        backend: None or "pyav": PyAV. "decord": decord for the files that it reads correctly, PyAV for the others.
            "opencv" is accepted for compatibility and means PyAV.

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
        self._indexed = False  # whether _packets was looked for
        self._stream = FrameStream(self.path)
        try:
            self._convert = self._make_converter()
        except BaseException:
            self.close()
            raise
        self.height, self.width = self._convert.height, self._convert.width
        self.fps = frame_rate(self._stream.stream)
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
        """Frames that can be decoded, counted by decoding the file once."""
        self._scan()
        return self._count

    def expected_frames(self) -> int:
        """How many frames there should be, by the packets or else the header, without decoding where possible.

        Never more than can be decoded once the frames have been counted; before, a hint.
        """
        if self._count is not None:
            return self._count
        if self._packet_index() is not None:
            return len(self._packets)
        return self._stream.stream.frames or len(self)

    def check(self) -> None:
        """Decodes the file once, from end to end.

        Raises:
            UserError: the file is damaged: decoding fails before the end, or the file is truncated.
        """
        self._scan()
        if self._damage:
            announced = self._stream.stream.frames
            promise = f", its header promises {announced}" if announced else ""
            raise UserError(
                f"{self.path}: damaged: {self._count} frames can be read{promise} ({self._damage}); "
                "replace the file or leave it out"
            )

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Frames by number, in the order asked for: uint8 RGB (len(indices), H, W, 3).

        Raises:
            UserError: the file has fewer frames than asked for, or cannot be decoded that far.
        """
        return next(self.chunks(indices, max(1, len(indices))))

    def chunks(self, indices: Sequence[int], size: int = BATCH) -> Iterator[np.ndarray]:
        """The same as `read`, `size` frames at a time: long videos in constant memory."""
        indices = [int(index) for index in indices]
        if not indices or min(indices) < 0:
            raise UserError(f"{self.path}: frames {indices} asked for; give one number at least, counted from 0")
        for start in range(0, len(indices), size):
            yield self._read(indices[start : start + size], needed=max(indices) + 1)

    def _read(self, indices: list[int], needed: int) -> np.ndarray:
        """`needed` is the number of frames the whole request needs, for the error."""
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
        if not self._go_to(index):
            reason = f" ({self._stream.damage})" if self._stream.damage else ""
            raise UserError(f"{self.path}: {needed} frames needed, {self._stream.position} can be read{reason}")
        try:
            return self._convert(self._stream.current)
        except Exception as error:  # of FFmpeg's filters
            raise UserError(f"{self.path}: frame {index} cannot be converted to RGB: {error}") from error

    def _go_to(self, index: int) -> bool:
        """Decodes frame `index` into the stream's `current`; False if the stream ends before it."""
        if not self._stream.position - 1 <= index < self._stream.position + SHORT_GAP:
            self._approach(index)
        try:
            while self._stream.position <= index:
                if not self._stream.advance():
                    if not self._stream.sought:
                        return False
                    raise UnexpectedFrame
        except UnexpectedFrame:
            self._restart()
            self._packets = None  # decoding does not give what packets announce: count from the start from now on
            return self._go_to(index)
        return True

    def _approach(self, index: int) -> None:
        """Moves the stream to the keyframe before `index`, or to the start, unless it is between the two."""
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
        """The index, made when it is first needed; None where there is none that can be relied on."""
        if not self._indexed:
            self._indexed = True
            try:
                with open_container(self.path) as container:
                    packets = index_packets(self._stream.codec, container.format.name, demux(container))
            except Exception:  # of PyAV, for a damaged file: what can be decoded is found by decoding
                packets = None
            if packets is not None and packets.times[0] == self._first_time:
                self._packets = packets
        return self._packets

    def _scan(self) -> None:
        """Decodes everything once, to count the frames and to find damage."""
        if self._count is not None:
            return
        with FrameStream(self.path) as stream:
            while stream.advance():
                pass
            self._count, self._damage = stream.position, stream.damage
            if self._damage is None and is_truncated(self.path, stream.container.format.name):
                self._damage = "the file ends too early"
        if self._packets is not None and len(self._packets) != self._count:
            self._packets = None

    def _make_converter(self) -> RgbConverter:
        """Decodes the first frame, which says what the others look like."""
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
            raise UserError(f"{self.path}: not a video that can be read: {error}") from error


def frame_rate(stream: av.VideoStream) -> float:
    """Frames per second; 0.0 where unknown.

    FFmpeg's guess is preferred to the average, which the length of the last frame distorts, unless it is a tick of the
    container's clock rather than a frame rate.
    """
    guessed, average = (float(rate or 0) for rate in (stream.guessed_rate, stream.average_rate))
    return average if average and not 0 < guessed <= 2 * average else guessed
