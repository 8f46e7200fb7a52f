"""Video files made with the ffmpeg program, including corrupt ones."""

from __future__ import annotations

import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Optional

import av
import imageio_ffmpeg
import numpy as np
import pytest
from video_files import moving_image

from opensora.datasets import media

HAS_DECORD = find_spec("decord") is not None
NEEDS_DECORD = pytest.mark.skipif(not HAS_DECORD, reason="decord is not installed")
BACKENDS = [pytest.param(name, marks=NEEDS_DECORD if name == "decord" else ()) for name in media.BACKENDS]
READERS = (None, "decord") if HAS_DECORD else (None,)  # the backends that read differently

FPS = 10
YUV420 = ("-pix_fmt", "yuv420p", "-crf", 5)
CLIP_FRAMES, CLIP_FPS, CLIP_HEIGHT, CLIP_WIDTH = 60, 30, 240, 426


def run_ffmpeg(*arguments, stdin: bytes = b"") -> bytes:
    """Runs the ffmpeg program; returns its stdout."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)]
    result = subprocess.run(command, input=stdin, capture_output=True, check=False)
    if result.returncode < 0:
        pytest.skip("this ffmpeg program crashes")  # 7.0.2, imageio's newest for Python 3.9, crashes on .ts files
    assert result.returncode == 0, result.stderr
    return result.stdout


def make_video(path: Path, *options, frames: Optional[np.ndarray] = None) -> Path:
    """Encodes `frames`, uint8 (T, H, W, 3), at 10 frames per second with the given ffmpeg options."""
    frames = moving_image() if frames is None else frames
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    source = f"-f rawvideo -pix_fmt rgb24 -s {size} -r {FPS} -i -".split()
    run_ffmpeg(*source, *options, path, stdin=frames.tobytes())
    return path


def decode_with_ffmpeg(path: Path, height: int, width: int, *filters) -> np.ndarray:
    """All frames as the ffmpeg program converts them: uint8 RGB (T, height, width, 3)."""
    frames = run_ffmpeg("-i", path, "-fps_mode", "passthrough", *filters, *"-f rawvideo -pix_fmt rgb24 -".split())
    return np.frombuffer(frames, np.uint8).reshape(-1, height, width, 3)


def make_clip(path: Path) -> Path:
    """A clip like one from a camera: 2 s of H.264 with B-frames and a keyframe every 20 frames, and AAC audio."""
    image = f"testsrc2=size={CLIP_WIDTH}x{CLIP_HEIGHT}:rate={CLIP_FPS}:duration=2"
    video = "-c:v libx264 -pix_fmt yuv420p -g 20 -keyint_min 20 -sc_threshold 0 -bf 3".split()
    run_ffmpeg(*f"-f lavfi -i {image} -f lavfi -i sine=duration=2".split(), *video, *"-c:a aac -shortest".split(), path)
    return path


def corrupt_middle(source: Path, target: Path) -> Path:
    """Copies a video and overwrites the packets of half a second after the middle keyframe."""
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    keyframes = [number for number, packet in enumerate(packets) if packet.is_keyframe]
    first = keyframes[len(keyframes) // 2]
    for packet in packets[first : first + 15]:
        data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    target.write_bytes(data)
    return target
