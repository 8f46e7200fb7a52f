"""Generated input videos, intact and truncated."""

from __future__ import annotations

import subprocess
from pathlib import Path

import imageio_ffmpeg
from video_files import moving_image

from opensora.datasets.media import write_video


def write_clip(path: Path, frames: int = 30, height: int = 90, width: int = 160, fps: float = 10) -> Path:
    with write_video(path, fps) as write:
        write(moving_image(frames, height, width))
    return path


def write_truncated_clip(path: Path, frames: int = 30) -> Path:
    """An .mp4 whose header announces `frames` frames, of which about half are in the file."""
    whole = write_clip(path.with_name("whole.mp4"), frames)
    # The header precedes the frames, so that it survives the truncation.
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-i", whole, "-c", "copy"]
    subprocess.run([*map(str, command), "-movflags", "+faststart", str(path)], check=True)
    whole.unlink()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path
