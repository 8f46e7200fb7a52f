"""Video files out, encoded by imageio's ffmpeg."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Union

import imageio_ffmpeg
import numpy as np

from opensora.datasets.media.frame_stream import count_packets
from opensora.datasets.media.images import check_suffix
from opensora.errors import UserError
from opensora.utils.files import atomic_write

H264 = {"codec": "libx264", "pix_fmt_out": "yuv420p", "quality": 6}
GIF = {
    "codec": "gif",
    "pix_fmt_out": "pal8",
    "quality": None,
    "output_params": ["-filter_complex", "split[a][b];[a]palettegen[p];[b][p]paletteuse"],
}
WRITERS = {".mp4": H264, ".m4v": H264, ".mov": H264, ".mkv": H264, ".avi": H264, ".gif": GIF}


@contextmanager
def write_video(path: Union[str, Path], fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Opens a video for writing; yields a function that takes frames, uint8 RGB (T, H, W, 3), as they come.

    H.264, yuv420p, quality 6 (.mp4 .m4v .mov .mkv .avi) or an animated .gif. H.264 in yuv420p has even sizes only:
    the last row or column of an odd height or width is repeated, nothing is rescaled. The file appears when the block
    ends without an error; otherwise nothing is left under its name.

    Raises:
        UserError: a suffix or fps that cannot be written, frames of another size than the first, or no frames at all.
        OSError: the file could not be written; the message names the cause.
    """
    path = Path(path)
    check_video_suffix(path)
    if not 0 < fps < math.inf:
        raise UserError(f"{path}: a video needs a positive number of frames per second, not {fps}")
    with atomic_write(path) as temporary:
        temporary.touch()  # a folder that cannot be written to shows before frames are made
        stream = _FfmpegStream(path, temporary, fps)
        try:
            yield stream.write
            stream.finish()
        finally:
            stream.close()


def check_video_suffix(path: Union[str, Path]) -> None:
    """UserError unless `write_video` can write a file of this name."""
    check_suffix(Path(path), WRITERS)


class _FfmpegStream:
    """A running ffmpeg that takes frames; `path` is the name errors speak of, `temporary` what is written."""

    def __init__(self, path: Path, temporary: Path, fps: float):
        self.path, self.temporary, self.fps = path, temporary, fps
        self.options = WRITERS[path.suffix.lower()]
        self.process, self.shape, self.count = None, None, 0

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
            if self.process is None:
                # "file:" so that a name with a colon is not taken for a protocol, nor one with a dash for an option
                self.process = imageio_ffmpeg.write_frames(
                    f"file:{self.temporary}", frames.shape[2:0:-1], fps=self.fps, macro_block_size=1, **self.options
                )
                self.process.send(None)
            for frame in frames:
                self.process.send(np.ascontiguousarray(frame))
        except OSError as error:
            raise OSError(f"{self.path}: the video could not be written: {self._cause()}") from error
        self.count += len(frames)

    def finish(self) -> None:
        """Ends the file and makes sure that it is whole: ffmpeg's exit code is not passed on."""
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
        """Why ffmpeg could not write: imageio passes on neither its message nor its exit code, so try to write here."""
        try:
            with open(self.temporary, "ab") as file:
                file.write(bytes(1 << 20))
                os.fsync(file.fileno())
        except OSError as error:
            no_space = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            return f"{error.strerror}{'; is the disk full?' if no_space else ''}"
        height, width = self.shape[:2]
        return f"ffmpeg stopped at {width}x{height} pixels, {self.fps:g} frames per second; its messages are above"
