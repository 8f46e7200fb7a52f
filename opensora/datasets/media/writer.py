"""Writes video files with imageio's ffmpeg."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Optional, Union

import imageio_ffmpeg
import numpy as np

from opensora.datasets.media.frame_stream import count_packets
from opensora.datasets.media.images import check_suffix
from opensora.errors import UserError
from opensora.utils.files import atomic_write

H264: dict[str, Any] = {"codec": "libx264", "pix_fmt_out": "yuv420p", "quality": 6}
LOSSLESS: dict[str, Any] = {
    "codec": "libx264rgb",
    "pix_fmt_out": "rgb24",
    "quality": None,
    "output_params": ["-crf", "0", "-preset", "veryfast"],
}
GIF: dict[str, Any] = {
    "codec": "gif",
    "pix_fmt_out": "pal8",
    "quality": None,
    "output_params": ["-filter_complex", "split[a][b];[a]palettegen[p];[b][p]paletteuse"],
}
WRITERS = {".mp4": H264, ".m4v": H264, ".mov": H264, ".mkv": H264, ".avi": H264, ".gif": GIF}


@contextmanager
def write_video(path: Union[str, Path], fps: float, lossless: bool = False) -> Iterator[Callable[[np.ndarray], None]]:
    """Opens a video for writing; yields a function that appends frames, uint8 RGB (T, H, W, 3).

    H.264, yuv420p, quality 6 (.mp4 .m4v .mov .mkv .avi) or an animated .gif. H.264 in yuv420p requires even sizes: an
    odd height or width is padded by repeating the last row or column. The file is written atomically: it appears when
    the block ends without an error.

    Args:
        lossless: H.264 of RGB, without loss; few players show it.

    Raises:
        UserError: an unsupported suffix or fps, a lossless .gif, frames of different sizes, or no frames.
        OSError: the file could not be written; the message names the cause.
    """
    path = Path(path)
    check_video_suffix(path)
    if not 0 < fps < math.inf:
        raise UserError(f"{path}: a video needs a positive number of frames per second, not {fps}")
    options = WRITERS[path.suffix.lower()]
    if lossless:
        if options is not H264:
            raise UserError(f"{path}: a lossless video needs another suffix, such as .mp4")
        options = LOSSLESS
    with atomic_write(path) as temporary:
        temporary.touch()  # fails early if the folder is not writable
        stream = _FfmpegStream(path, temporary, fps, options)
        try:
            yield stream.write
            stream.finish()
        finally:
            stream.close()


def check_video_suffix(path: Union[str, Path]) -> None:
    """Raises UserError unless `write_video` can write a file with this suffix."""
    check_suffix(Path(path), WRITERS)


class _FfmpegStream:
    """An ffmpeg process that encodes frames to `temporary`; error messages name `path`."""

    def __init__(self, path: Path, temporary: Path, fps: float, options: dict[str, Any]):
        self.path, self.temporary, self.fps, self.options = path, temporary, fps, options
        self.process: Optional[Generator[None, Optional[np.ndarray], None]] = None
        self.shape: tuple[int, ...] = ()
        self.count = 0

    def write(self, frames: np.ndarray) -> None:
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise UserError(f"{self.path}: frames must be uint8 (T, H, W, 3), not {frames.dtype} {frames.shape}")
        self.shape = self.shape or frames.shape[1:]
        if frames.shape[1:] != self.shape:
            raise UserError(f"{self.path}: frames of {frames.shape[1:]} after frames of {self.shape}")
        if self.options is H264:
            height, width = self.shape[:2]
            frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        try:
            process = self.process or self._start(frames.shape[2:0:-1])
            for frame in frames:
                process.send(np.ascontiguousarray(frame))
        except OSError as error:
            raise OSError(f"{self.path}: the video could not be written: {self._cause()}") from error
        self.count += len(frames)

    def _start(self, size: tuple[int, ...]) -> Generator[None, Optional[np.ndarray], None]:
        """Starts ffmpeg for frames of `size` (width, height)."""
        # With "file:", a colon in the name does not make it a protocol, nor a dash an option.
        target = f"file:{self.temporary}"
        process = imageio_ffmpeg.write_frames(target, size, fps=self.fps, macro_block_size=1, **self.options)
        self.process = process
        process.send(None)
        return process

    def finish(self) -> None:
        """Closes the file and counts its frames, because imageio does not report ffmpeg's exit code."""
        if self.count == 0:
            raise UserError(f"{self.path}: no frames to write")
        self.close()
        written = count_packets(self.temporary)
        if written != self.count:
            raise OSError(f"{self.path}: only {written} of {self.count} frames were written: {self._cause()}")

    def close(self) -> None:
        if self.process is not None:
            self.process.close()
            self.process = None

    def _cause(self) -> str:
        """Why ffmpeg failed. imageio reports neither message nor exit code, so this tries to write to the file."""
        try:
            with open(self.temporary, "ab") as file:
                file.write(bytes(1 << 20))
                os.fsync(file.fileno())
        except OSError as error:
            no_space = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            return f"{error.strerror}{'; is the disk full?' if no_space else ''}"
        height, width = self.shape[:2]
        return f"ffmpeg stopped at {width}x{height} pixels, {self.fps:g} frames per second; its messages are above"
