"""Speed and memory of reading videos, PyAV against decord: python benchmarks/video_reading.py [FILE ...]

Without files, clips are generated with ffmpeg. Each case runs in a separate process with one decoding thread: open and
read 17 frames at a random position, as for a training sample, 8 times; 16 random frames; all frames in order.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import imageio_ffmpeg

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a fresh clone

from opensora.datasets.media import VideoReader  # noqa: E402

CLIPS = {"1280x720, keyframe every 250": ("1280x720", 250), "640x360, keyframe every 24": ("640x360", 24)}


def make_clip(path: Path, size: str, keyframes: int, seconds: int = 25) -> None:
    source = f"testsrc2=size={size}:rate=24:duration={seconds},noise=alls=12:allf=t"
    subprocess.run(
        [
            imageio_ffmpeg.get_ffmpeg_exe(),
            "-v",
            "error",
            "-f",
            "lavfi",
            "-i",
            source,
            "-c:v",
            "libx264",
            "-preset",
            "veryfast",
            "-pix_fmt",
            "yuv420p",
            "-g",
            str(keyframes),
            "-bf",
            "3",
            str(path),
        ],
        check=True,
    )


def clip(path: str, backend: str, frames: int) -> None:
    for seed in range(8):
        start = random.Random(seed).randrange(frames - 17)
        with VideoReader(path, backend) as reader:
            reader.read(range(start, start + 17))


def scattered(path: str, backend: str, frames: int) -> None:
    with VideoReader(path, backend) as reader:
        reader.read(random.Random(0).sample(range(frames), 16))


def in_order(path: str, backend: str, frames: int) -> None:
    with VideoReader(path, backend) as reader:
        for _ in reader.chunks(range(frames)):
            pass


CASES = {"17 frames in a row, 8 times": clip, "16 random frames": scattered, "all frames in order": in_order}


def measure(path: str, backend: str, case: str) -> None:
    """Prints seconds, and the increase of the process's peak memory in megabytes."""
    with VideoReader(path, backend) as reader:
        frames = reader.expected_frames()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    CASES[case](path, backend, frames)
    seconds = time.perf_counter() - start
    print(f"{seconds:.2f} s, {(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="videos; none: clips are generated")
    parser.add_argument("--measure", nargs=2, metavar=("BACKEND", "CASE"), help="one measurement of the first file")
    args = parser.parse_args()
    if args.measure:
        measure(args.files[0], *args.measure)
        return
    with tempfile.TemporaryDirectory() as folder:
        files = {path: path for path in args.files}
        if not files:
            for number, (name, settings) in enumerate(CLIPS.items()):
                files[name] = f"{folder}/{number}.mp4"
                make_clip(Path(files[name]), *settings)
        for name, path in files.items():
            for case in CASES:
                for backend in ("pyav", "decord"):
                    command = [sys.executable, __file__, path, "--measure", backend, case]
                    result = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
                    print(f"{name} | {case} | {backend} | {result}", flush=True)


if __name__ == "__main__":
    main()
