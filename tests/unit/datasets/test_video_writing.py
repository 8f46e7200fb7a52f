"""Writing videos."""

from __future__ import annotations

import subprocess
import sys

import imageio_ffmpeg
import numpy as np
import pytest
from video_files import difference, moving_image

from opensora.datasets.media import VideoReader, write_video
from opensora.errors import UserError


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".gif"])
def test_written_video_reads_back(suffix, tmp_path):
    frames = moving_image(9)
    with write_video(tmp_path / f"clip{suffix}", fps=10) as write:
        write(frames[:1])
        write(frames[1:5])
        write(frames[5:])
    with VideoReader(tmp_path / f"clip{suffix}") as reader:
        assert len(reader) == 9 and reader.fps == 10
        assert difference(reader.read(range(9)), frames) < 10
    assert [path.name for path in tmp_path.iterdir()] == [f"clip{suffix}"]


def test_written_mp4_is_h264_yuv420p(tmp_path):
    with write_video(tmp_path / "clip.mp4", fps=24) as write:
        write(moving_image(3))
    about = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-i", tmp_path / "clip.mp4"], stderr=subprocess.PIPE, text=True, check=False
    ).stderr
    assert "Video: h264" in about and "yuv420p" in about and "24 fps" in about


def test_lossless_video_has_the_same_pixels(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 17, 23, 3), np.uint8)
    with write_video(tmp_path / "a.mp4", 8, lossless=True) as write:
        write(frames)
    with VideoReader(tmp_path / "a.mp4") as video:
        assert (np.asarray(video.read(range(5))) == frames).all()
    with pytest.raises(UserError, match="a.gif: a lossless video needs another suffix"):
        with write_video(tmp_path / "a.gif", 8, lossless=True):
            pass
    assert not (tmp_path / "a.gif").exists()


def test_odd_size_is_padded(tmp_path):
    frames = moving_image(3, 47, 63)
    with write_video(tmp_path / "odd.mp4", fps=10) as write:
        write(frames)
    back = VideoReader(tmp_path / "odd.mp4").read(range(3))
    assert back.shape == (3, 48, 64, 3)
    assert difference(back[:, :47, :63], frames) < 8
    assert np.abs(back[:, 47].astype(int) - back[:, 46]).mean() < 4


def test_interrupted_write_keeps_the_old_file(tmp_path):
    (tmp_path / "clip.mp4").write_text("an older video")
    with pytest.raises(KeyboardInterrupt):
        with write_video(tmp_path / "clip.mp4", fps=10) as write:
            write(moving_image(3))
            raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    assert (tmp_path / "clip.mp4").read_text() == "an older video"


def test_full_disk_is_reported(tmp_path):
    """A limit on the file size simulates a full disk."""
    program = (
        "import resource, numpy as np\n"
        "from opensora.datasets.media import write_video\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "noise = np.random.default_rng(0).integers(0, 256, (30, 96, 128, 3), np.uint8)\n"
        f"with write_video({str(tmp_path / 'clip.mp4')!r}, 10) as write:\n"
        "    write(noise)"
    )
    result = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode != 0 and "File too large; is the disk full?" in result.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_failure_of_ffmpeg_is_reported(tmp_path):
    with pytest.raises(OSError, match="clip.mp4: .*ffmpeg stopped at 20000x2 pixels, 10 frames per second"):
        with write_video(tmp_path / "clip.mp4", fps=10) as write:
            write(np.zeros((3, 2, 20000, 3), np.uint8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_invalid_frame_rate_is_rejected(fps, tmp_path):
    with pytest.raises(ValueError, match="clip.mp4: a video needs a positive number of frames"):
        with write_video(tmp_path / "clip.mp4", fps=fps):
            pass


def test_invalid_frames_are_rejected(tmp_path):
    path = tmp_path / "clip.mp4"
    with pytest.raises(ValueError, match="choose from .mp4"):
        with write_video(tmp_path / "clip.webm", fps=10):
            pass
    with pytest.raises(ValueError, match="no frames"):
        with write_video(path, fps=10):
            pass
    with pytest.raises(ValueError, match="must be uint8"):
        with write_video(path, fps=10) as write:
            write(np.zeros((2, 16, 16, 3), np.float32))
    with pytest.raises(ValueError, match=r"frames of \(16, 16, 3\) after frames of \(16, 24, 3\)"):
        with write_video(path, fps=10) as write:
            write(np.zeros((2, 16, 24, 3), np.uint8))
            write(np.zeros((2, 16, 16, 3), np.uint8))
    assert not list(tmp_path.iterdir())
