"""Videos and images, in and out: everything is RGB uint8, (T, H, W, 3) or (H, W, 3), upright as a player shows it.

Videos are read with decord where it is installed and with OpenCV where it is not; both give the same frames.
Files are written beside their place and moved there when whole.
"""
from __future__ import annotations

import ctypes
import os
import re
import subprocess
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Callable, Iterable, Iterator, Optional, Sequence, Union
from unittest import mock

import cv2
import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageOps

from opensora.utils.files import atomic_write

# Bad files are reported once, by the errors below, not in the words of the libraries.
cv2.setLogLevel(2)  # errors only
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read when cv2 opens its first video

try:
    # decord shows all its symbols to libraries loaded later, and mindspore among them aborts on that.
    with mock.patch.object(ctypes, "RTLD_GLOBAL", ctypes.RTLD_LOCAL):
        import decord
    decord.logging.set_level(decord.logging.QUIET)
except (ImportError, OSError):
    decord = None

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
BACKENDS = ("decord", "opencv")
BATCH = 16  # frames decoded at a time: bounds memory, whatever is asked for

# decord finds frames by the container's index; in streams without one (.ts, .mpg) it starts a group of pictures late,
# and where frames have no times (.avi) it now and then gives the last frame but one in place of the last.
DECORD_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm")

H264 = {"codec": "libx264", "pix_fmt_out": "yuv420p", "quality": 6}
GIF = {"codec": "gif", "pix_fmt_out": "pal8", "quality": None,
       "output_params": ["-filter_complex", "split[a][b];[a]palettegen[p];[b][p]paletteuse"]}
WRITERS = {".mp4": H264, ".m4v": H264, ".mov": H264, ".mkv": H264, ".avi": H264, ".gif": GIF}


class VideoReader:
    """The frames of one video file.

    Rotation flags are applied, and frames count in order of display, whatever their time stamps
    (a variable frame rate changes nothing here). `height`, `width` and `fps` come from the file's header.

    Args:
        path: the file.
        backend: "decord" or "opencv"; None takes decord where it is installed. A file decord cannot be trusted
            with (turned by 90 degrees, no index, or an error while decoding) is read by OpenCV all the same.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no video in the file, or an unknown backend.
    """

    def __init__(self, path: Union[str, Path], backend: Optional[str] = None):
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file")
        if backend not in (None, *BACKENDS):
            raise ValueError(f"unknown video backend {backend!r}; choose from {', '.join(BACKENDS)}")
        if backend == "decord" and decord is None:
            raise ValueError("the decord backend needs the decord package: pip install decord")
        self._open_capture()
        self.width = int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        self.height = int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        self.fps = self._capture.get(cv2.CAP_PROP_FPS)
        self._count: Optional[int] = None  # unknown before _scan
        self._seconds = 0.0
        self._color_matrix: Optional[str] = None  # found when OpenCV reads the first frame
        self._decord = None
        self._use_decord = (decord is not None and backend != "opencv"
                            and self.path.suffix.lower() in DECORD_SUFFIXES
                            and self._capture.get(cv2.CAP_PROP_ORIENTATION_META) == 0)

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        self._capture.release()
        self._decord = None

    def __len__(self) -> int:
        """Frames in the file, counted by decoding it once: headers of some containers only estimate."""
        self._scan()
        return self._count

    def check(self) -> None:
        """Decodes the file once, from end to end.

        Raises:
            ValueError: the file is damaged: its frames stop well before its header says they do.
        """
        self._scan()
        declared = self._capture.get(cv2.CAP_PROP_FRAME_COUNT)
        # Both must fall short: at a variable frame rate the promised count is an estimate, the last time stamp is not.
        if self._count == 0 or max(self._count, self._seconds * self.fps + 1) < 0.9 * declared:
            raise ValueError(f"{self.path}: damaged: {self._count} frames can be read, its header promises "
                             f"{int(declared)}; replace the file or leave it out")

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Frames by number, in the order asked for: uint8 RGB (len(indices), H, W, 3).

        Raises:
            ValueError: the file holds fewer frames than asked for, or cannot be decoded that far.
        """
        return next(self.chunks(indices, max(1, len(indices))))

    def chunks(self, indices: Sequence[int], size: int = BATCH) -> Iterator[np.ndarray]:
        """The same as `read`, `size` frames at a time: long videos in constant memory."""
        indices = [int(index) for index in indices]
        if not indices or min(indices) < 0:
            raise ValueError(f"{self.path}: frames {indices} asked for; give one number at least, counted from 0")
        for start in range(0, len(indices), size):
            yield self._read(indices[start:start + size], needed=max(indices) + 1)

    def _read(self, indices: list[int], needed: int) -> np.ndarray:
        """`needed` is the number of frames the whole request needs, for the error."""
        if self._use_decord:
            try:
                return self._read_decord(indices)
            except (decord.DECORDError, decord.DECORDLimitReachedError, IndexError):
                self._use_decord, self._decord = False, None
        return self._read_opencv(indices, needed)

    def _open_capture(self) -> None:
        self._capture = cv2.VideoCapture(str(self.path), cv2.CAP_FFMPEG)
        self._capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 1)
        self._position = 0  # of the frame the next grab gives
        if not self._capture.isOpened():
            raise ValueError(f"{self.path}: not a video that can be read (damaged, empty or another kind of file)")

    def _scan(self) -> None:
        """Grabs all frames once, to count them and to know when the last one is shown."""
        if self._count is not None:
            return
        self._open_capture()
        while self._capture.grab():
            self._position += 1
            self._seconds = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        self._count = self._position

    def _read_decord(self, indices: list[int]) -> np.ndarray:
        if self._decord is None:
            self._decord = decord.VideoReader(str(self.path), num_threads=1)
        frames = np.empty((len(indices), self.height, self.width, 3), np.uint8)
        for start in range(0, len(indices), BATCH):
            batch = indices[start:start + BATCH]
            frames[start:start + len(batch)] = self._decord.get_batch(batch).asnumpy()
        return frames

    def _read_opencv(self, indices: list[int], needed: int) -> np.ndarray:
        """Decodes from the start on: OpenCV's seeking is off by frames in some files."""
        frames = np.empty((len(indices), self.height, self.width, 3), np.uint8)
        for place in np.argsort(indices, kind="stable"):
            frames[place] = self._decode(indices[place], needed)
        return frames

    def _decode(self, index: int, needed: int) -> np.ndarray:
        if index < self._position - 1:
            self._open_capture()
        while self._position <= index:
            if not self._capture.grab():
                raise ValueError(f"{self.path}: {needed} frames needed, {self._position} can be read")
            self._position += 1
        ok, frame = self._capture.retrieve()
        if not ok or frame.shape != (self.height, self.width, 3):
            raise ValueError(f"{self.path}: damaged at frame {index}; replace the file or leave it out")
        if self._color_matrix is None:
            self._color_matrix = find_color_matrix(self.path)
        return cv2.transform(frame, _bgr_to_rgb(self._color_matrix))


def find_color_matrix(path: Path) -> str:
    """How the file's YUV means RGB: "bt709" or "bt2020nc" where its stream says so, else "bt601"."""
    probe = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path)],
                           stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    found = re.search(rb"Video: [^\n]*?\((?:(?:tv|pc), )?(bt709|bt2020nc)\b", probe.stderr)
    return found.group(1).decode() if found else "bt601"


@lru_cache(maxsize=None)
def _bgr_to_rgb(color_matrix: str) -> np.ndarray:
    """(3, 3) from OpenCV's BGR to true RGB. OpenCV decodes all YUV as BT.601, whatever the file says."""
    kr_kb = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020nc": (0.2627, 0.0593)}  # of the ITU's standards
    to_rgb = _yuv_to_rgb(*kr_kb[color_matrix]) @ np.linalg.inv(_yuv_to_rgb(*kr_kb["bt601"]))
    return to_rgb[:, ::-1]


def _yuv_to_rgb(kr: float, kb: float) -> np.ndarray:
    """(3, 3) from (Y, Cb, Cr) to (R, G, B) for the luma weights of a standard."""
    kg = 1 - kr - kb
    return np.array([[1, 0, 2 * (1 - kr)],
                     [1, -2 * kb * (1 - kb) / kg, -2 * kr * (1 - kr) / kg],
                     [1, 2 * (1 - kb), 0]])


def sample_indices(num_frames: int, sample_rate: int = 1) -> np.ndarray:
    """`num_frames` frame numbers spread evenly over the first num_frames * sample_rate frames."""
    return np.linspace(0, num_frames * sample_rate - 1, num_frames, dtype=int)


def read_image(path: Union[str, Path]) -> np.ndarray:
    """An image as uint8 RGB (H, W, 3), turned as its EXIF data say; transparent parts lie on white.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is no image, or a damaged one.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not an image that can be read: {error}") from error


def save_image(path: Union[str, Path], image: np.ndarray) -> None:
    """Writes uint8 RGB (H, W, 3); the suffix chooses the format."""
    check_image_suffix(path)
    with atomic_write(path) as temporary:
        Image.fromarray(image).save(temporary, quality=95)


def save_grid(path: Union[str, Path], rows: Sequence[np.ndarray], columns: int = 8, gap: int = 4) -> None:
    """A contact sheet: one row per video (T, H, W, 3), `columns` frames of each, evenly spaced in time."""
    strips = [[video[index] for index in np.linspace(0, len(video) - 1, min(columns, len(video)), dtype=int)]
              for video in rows]
    height, width = (max(frame.shape[axis] for strip in strips for frame in strip) for axis in (0, 1))
    sheet = np.full((len(strips) * (height + gap) - gap, max(map(len, strips)) * (width + gap) - gap, 3), 255, np.uint8)
    for row, strip in enumerate(strips):
        for column, frame in enumerate(strip):
            top, left = row * (height + gap), column * (width + gap)
            sheet[top:top + frame.shape[0], left:left + frame.shape[1]] = frame
    save_image(path, sheet)


@contextmanager
def write_video(path: Union[str, Path], fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Opens a video for writing; yields a function that takes frames, uint8 RGB (T, H, W, 3), as they come.

    H.264, yuv420p, quality 6 (.mp4 .m4v .mov .mkv .avi) or an animated .gif. H.264 in yuv420p has even sizes only:
    an odd height or width gets its last row or column twice, nothing is rescaled. The file appears when the block ends
    well; a run that stops before leaves nothing under its name.

    Raises:
        ValueError: a suffix or fps that cannot be written, frames of another size than the first, or no frames at all.
        OSError: the file could not be written, say on a full disk.
    """
    path = Path(path)
    check_video_suffix(path)
    if fps <= 0:
        raise ValueError(f"{path}: a video needs more than {fps} frames per second")
    with atomic_write(path) as temporary:
        temporary.touch()  # a folder that cannot be written to shows before frames are made
        stream = _FfmpegStream(path, temporary, fps)
        try:
            yield stream.write
            stream.finish()
        finally:
            stream.close()


def check_video_suffix(path: Union[str, Path]) -> None:
    """ValueError unless `write_video` can write a file of this name."""
    _check_suffix(Path(path), WRITERS)


def check_image_suffix(path: Union[str, Path]) -> None:
    """ValueError unless `save_image` can write a file of this name."""
    _check_suffix(Path(path), IMAGE_SUFFIXES)


def _check_suffix(path: Path, allowed: Iterable[str]) -> None:
    if path.suffix.lower() not in allowed:
        raise ValueError(f"{path}: cannot write {path.suffix or 'a file without suffix'}; "
                         f"choose from {', '.join(allowed)}")


class _FfmpegStream:
    """A running ffmpeg that takes frames; `path` is the name errors speak of, `temporary` what is written."""

    def __init__(self, path: Path, temporary: Path, fps: float):
        self.path, self.temporary, self.fps = path, temporary, fps
        self.options = WRITERS[path.suffix.lower()]
        self.process, self.shape, self.count = None, None, 0

    def write(self, frames: np.ndarray) -> None:
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
            raise ValueError(f"{self.path}: frames must be uint8 (T, H, W, 3), not {frames.dtype} {frames.shape}")
        self.shape = self.shape or frames.shape[1:]
        if frames.shape[1:] != self.shape:
            raise ValueError(f"{self.path}: frames of {frames.shape[1:]} after frames of {self.shape}")
        if self.options is H264:
            height, width = self.shape[:2]
            frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        try:
            if self.process is None:
                self.process = imageio_ffmpeg.write_frames(str(self.temporary), frames.shape[2:0:-1], fps=self.fps,
                                                           macro_block_size=1, **self.options)
                self.process.send(None)
            for frame in frames:
                self.process.send(np.ascontiguousarray(frame))
        except OSError as error:
            raise OSError(f"{self.path}: the video could not be written; is the disk full?") from error
        self.count += len(frames)

    def finish(self) -> None:
        """Ends the file and makes sure that it is whole: ffmpeg's exit code is not passed on."""
        if self.count == 0:
            raise ValueError(f"{self.path}: no frames to write")
        self.close()
        written = cv2.VideoCapture(str(self.temporary), cv2.CAP_FFMPEG).get(cv2.CAP_PROP_FRAME_COUNT)
        if written != self.count:
            raise OSError(f"{self.path}: only {int(written)} of {self.count} frames arrived; is the disk full?")

    def close(self) -> None:
        if self.process is not None:
            self.process.close()
            self.process = None
