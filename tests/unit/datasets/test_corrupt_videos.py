"""Corrupt, truncated and hostile video files are reported, not read wrongly."""

from __future__ import annotations

import struct
from fractions import Fraction

import av
import pytest
from ffmpeg_files import BACKENDS, CLIP_FRAMES, YUV420, make_video, run_ffmpeg
from video_files import moving_image

from opensora.datasets.media import VideoReader
from opensora.datasets.media.color import RgbConverter


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile real.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2,\nreal.mp4\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5000 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    ],
)
def test_file_that_refers_to_other_files_is_rejected(text, tmp_path):
    make_video(tmp_path / "real.mp4", *YUV420, frames=moving_image(2))
    (tmp_path / "list.mp4").write_text(text)
    with pytest.raises(ValueError, match="list.mp4: not a readable video .*playlists are refused"):
        VideoReader(tmp_path / "list.mp4")


def test_decompression_bomb_is_rejected(tmp_path):
    for size in (60000, 9000):
        (tmp_path / "bomb.gif").write_bytes(
            b"GIF89a"
            + struct.pack("<HH", size, size)
            + b"\x80\0\0\0\0\0\xff\xff\xff,"
            + struct.pack("<HHHH", 0, 0, size, size)
            + b"\0\x02\x02D\x01\0;"
        )
        with pytest.raises(ValueError, match="bomb.gif: .*67108864 pixels") as error:
            VideoReader(tmp_path / "bomb.gif")
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="frames of 6400000x64 pixels are too large"):
        RgbConverter(av.VideoFrame(64, 64), sample_aspect=Fraction(100000))


@pytest.mark.parametrize("backend", BACKENDS)
def test_too_few_frames_raise(backend, tmp_path):
    path = make_video(tmp_path / "short.mp4", *YUV420, frames=moving_image(5))
    with VideoReader(path, backend) as reader:
        reader.check()
        with pytest.raises(ValueError, match="short.mp4: 17 frames needed, 5 can be read"):
            reader.read(range(17))
        with pytest.raises(ValueError, match="short.mp4: 40 frames needed, 5 can be read"):
            list(reader.chunks(range(40)))
        with pytest.raises(ValueError, match=r"frames \[-1\] requested"):
            reader.read([-1])
        assert len(reader.read(range(5))) == 5, "the reader is still usable"


@pytest.mark.parametrize("backend", BACKENDS)
def test_corrupt_video_is_read_up_to_the_fault(backend, real_clip, corrupt_clip, capfd):
    """The fault is at keyframe 20; frames that the decoder holds back for reordering are lost."""
    with VideoReader(corrupt_clip, backend) as reader:
        count = len(reader)
        assert 15 <= count <= 20
        with pytest.raises(ValueError, match=f"corrupt.mp4: 40 frames needed, {count} can be read"):
            reader.read(range(40))
        message = f"corrupt.mp4: damaged: {count} frames can be read, its header promises {CLIP_FRAMES}"
        with pytest.raises(ValueError, match=message):
            reader.check()
        assert (reader.read(range(count)) == VideoReader(real_clip).read(range(count))).all()
    assert capfd.readouterr().err == "", "messages of libraries are not for the user"


@pytest.mark.parametrize("backend", BACKENDS)
def test_file_without_video_is_rejected(backend, tmp_path, capfd):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video")
    run_ffmpeg("-f", "lavfi", "-i", "sine=duration=1", tmp_path / "sound.mp4")
    whole = make_video(tmp_path / "whole.mp4", *YUV420, "-movflags", "+faststart").read_bytes()
    (tmp_path / "head.mp4").write_bytes(whole[:1200])
    for name in ("empty.mp4", "text.mp4", "sound.mp4", "head.mp4"):
        with pytest.raises(ValueError, match=name):
            with VideoReader(tmp_path / name, backend) as reader:
                reader.check()
    assert capfd.readouterr().err == "", "messages of libraries are not for the user"
    with pytest.raises(FileNotFoundError, match="absent.mp4: no such file"):
        VideoReader(tmp_path / "absent.mp4", backend)


@pytest.mark.parametrize(
    "name, options",
    [
        ("a.mkv", YUV420),
        ("a.avi", YUV420),
        ("a.mp4", (*YUV420, "-movflags", "+faststart")),
        ("a.mpg", ("-c:v", "mpeg2video", "-r", 25)),
    ],
)
def test_truncated_video_is_rejected(name, options, tmp_path):
    whole = make_video(tmp_path / name, *options).read_bytes()
    (tmp_path / f"half_{name}").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(ValueError, match=f"half_{name}: damaged"):
        VideoReader(tmp_path / f"half_{name}").check()


def test_video_truncated_between_frames_is_rejected(tmp_path):
    """FFmpeg reports no error; the sizes in the container reveal it."""
    path = make_video(tmp_path / "whole.mp4", *YUV420, "-movflags", "+faststart")
    with av.open(str(path)) as container:
        end = sorted(packet.pos for packet in container.demux(video=0) if packet.pos)[20]
    (tmp_path / "half.mp4").write_bytes(path.read_bytes()[:end])
    with pytest.raises(ValueError, match="half.mp4: damaged: .* its header promises 30 .the file ends too early"):
        VideoReader(tmp_path / "half.mp4").check()


def test_concealed_frames_are_rejected(tmp_path):
    data = bytearray(make_video(tmp_path / "whole.ts", "-c:v", "mpeg2video", "-r", 25, "-g", 10).read_bytes())
    middle = len(data) // 188 // 2 * 188
    data[middle + 60 : middle + 180] = bytes(120)
    (tmp_path / "damaged.ts").write_bytes(data)
    VideoReader(tmp_path / "whole.ts").check()
    with VideoReader(tmp_path / "damaged.ts") as reader:
        with pytest.raises(ValueError, match="damaged.ts: damaged"):
            reader.check()


def test_unknown_backend_is_rejected(tmp_path):
    path = make_video(tmp_path / "plain.mp4", *YUV420, frames=moving_image(2))
    with pytest.raises(ValueError, match="'torchvision'; choose from decord, opencv"):
        VideoReader(path, "torchvision")


def test_any_error_of_pyav_names_the_file(tmp_path, monkeypatch):
    path = make_video(tmp_path / "a.mp4", *YUV420, frames=moving_image(2))

    def fail(*_, **__):
        raise KeyError("x")

    monkeypatch.setattr(av, "open", fail)
    with pytest.raises(ValueError, match="a.mp4"):
        VideoReader(path)
