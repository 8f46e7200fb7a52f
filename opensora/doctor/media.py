"""ffmpeg, PyAV and decord: a video is written and read back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from opensora.doctor.checks import FAILED, OK, SKIPPED, Result, Rows, Settings

FRAMES, SIDE = 9, 64
LARGEST_ERROR = 8.0  # mean difference of gray levels of a smooth image after H.264; measured: 1


def rows(settings: Settings) -> Rows:
    return {"ffmpeg": ffmpeg_result, "pyav": lambda: backend_result("pyav"), "decord": decord_result}


def ffmpeg_result() -> Result:
    import imageio_ffmpeg

    numbers = {"version": imageio_ffmpeg.get_ffmpeg_version()}
    return Result(OK, f"ffmpeg {numbers['version']} of imageio-ffmpeg", numbers=numbers)


def decord_result() -> Result:
    from opensora.datasets.media import import_decord

    try:
        import_decord()
    except ValueError as error:
        return Result(SKIPPED, f"optional: {error}")
    return backend_result("decord")


def backend_result(backend: str) -> Result:
    """Writes smooth frames as H.264 and reads them with one of the reader's backends."""
    from opensora.datasets.media import VideoReader, write_video

    ramp = np.linspace(0, 200, SIDE)
    frames = (ramp[:, None] + 0 * ramp + 5 * np.arange(FRAMES)[:, None, None])[..., None].repeat(3, -1).astype(np.uint8)
    with tempfile.TemporaryDirectory(prefix="opensora-doctor-") as folder:
        path = Path(folder) / "clip.mp4"
        with write_video(path, fps=8) as write:
            write(frames)
        with VideoReader(path, backend=backend) as video:
            read = np.asarray(video.read(list(range(len(video)))), np.float64)
    if read.shape != frames.shape:
        return Result(FAILED, f"{backend} reads {read.shape} of a clip of {frames.shape}", f"install {backend} again")
    error = float(np.abs(read - frames).mean())
    if error > LARGEST_ERROR:
        return Result(FAILED, f"{backend}: frames differ by {error:.1f} of 255 levels", f"install {backend} again")
    return Result(
        OK, f"{FRAMES} frames written as H.264 and read, mean difference {error:.1f} of 255", numbers={"error": error}
    )
