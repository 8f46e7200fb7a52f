"""Reading videos: frames, random access, orientation, pixel aspect ratio, names. All files are made with ffmpeg."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from ffmpeg_files import (
    BACKENDS,
    CLIP_FPS,
    CLIP_FRAMES,
    CLIP_HEIGHT,
    CLIP_WIDTH,
    HAS_DECORD,
    READERS,
    YUV420,
    decode_with_ffmpeg,
    make_video,
    run_ffmpeg,
)
from PIL import Image
from video_files import FRAMES, HEIGHT, WIDTH, difference, moving_image

from opensora.datasets.media import VideoReader, write_video
from opensora.datasets.media.color import note_hdr
from opensora.datasets.media.frame_stream import FrameStream
from opensora.datasets.media.packet_index import is_shown

THIRDS = ("-vf", "select='not(mod(n,3))+gt(n,20)'", "-fps_mode", "vfr")


# name -> (ffmpeg options, largest difference between PyAV and decord). decord upsamples the chroma planes of 10-bit
# video differently.
KINDS = {
    "plain.mp4": (YUV420, 0),
    "b_frames.mkv": ((*YUV420, "-g", 12, "-bf", 3), 0),
    "variable_rate.mp4": ((*THIRDS, *YUV420), 0),
    "variable_rate.mkv": ((*THIRDS, *YUV420), 0),
    "late_start.mp4": ((*YUV420, "-output_ts_offset", 1.4), 0),
    "fragments.mp4": ((*YUV420, "-g", 12, "-movflags", "frag_keyframe+empty_moov"), 0),
    "stream.ts": ((*YUV420, "-g", 12, "-bf", 2), 0),
    "program.mpg": (("-c:v", "mpeg2video", "-r", 25, "-g", 12, "-bf", 2, "-q:v", 2), 0),
    "divx.avi": (("-c:v", "mpeg4", "-bf", 2, "-q:v", 2), 0),
    "gray.mp4": (("-pix_fmt", "gray"), 0),
    "full_range.mp4": (("-vf", "scale=out_range=pc", "-color_range", "pc", *YUV420), 0),
    "bt709.mp4": (("-vf", "scale=out_color_matrix=bt709", "-colorspace", "bt709", *YUV420), 0),
    "bt2020.mp4": (("-vf", "scale=out_color_matrix=bt2020", "-colorspace", "bt2020nc", *YUV420), 0),
    "ten_bit.mp4": (("-pix_fmt", "yuv420p10le", "-crf", 5), 6),
    "open_gop.mkv": ((*YUV420, "-x264-params", "open-gop=1:keyint=10:bframes=3"), 0),
    "intra_refresh.mkv": ((*YUV420, "-x264-params", "intra-refresh=1:keyint=10:bframes=0"), 0),
    "hevc.mp4": (("-c:v", "libx265", "-crf", 5, "-x265-params", "log-level=none:keyint=10"), 0),
    "vp9.webm": (("-c:v", "libvpx-vp9", "-pix_fmt", "yuv420p", "-crf", 5), 0),
    "vp8.webm": (("-c:v", "libvpx", "-pix_fmt", "yuv420p", "-crf", 5, "-b:v", "2M", "-auto-alt-ref", 1), 0),
    "av1.mp4": (("-c:v", "libaom-av1", "-cpu-used", 8, "-crf", 5, "-g", 10), 0),
    "moving.gif": (("-vf", "split[a][b];[a]palettegen[p];[b][p]paletteuse"), 0),
}


@pytest.mark.parametrize("name", KINDS)
def test_frames_equal_those_of_ffmpeg(name, tmp_path):
    options, tolerance = KINDS[name]
    path = make_video(tmp_path / name, *options)
    expected = decode_with_ffmpeg(path, HEIGHT, WIDTH)
    count = len(expected)
    with VideoReader(path) as reader:
        reader.check()
        assert len(reader) == reader.expected_frames() == count
        assert (reader.read(range(count)) == expected).all()
    assert_random_access(path, expected)
    if HAS_DECORD:
        with VideoReader(path, "decord") as reader:
            assert difference(reader.read(range(count)), expected) <= tolerance
    original = moving_image()
    if "variable" in name:
        original = original[[n for n in range(FRAMES) if n % 3 == 0 or n > 20]]
    if name == "gray.mp4":
        original = original @ np.array([[0.299], [0.587], [0.114]]).repeat(3, 1)
    if name != "program.mpg":  # made at another frame rate
        assert difference(expected, original) < 9


def assert_random_access(path, frames: np.ndarray) -> None:
    count = len(frames)
    for indices in ([count - 1], [count // 2, 0], [count * 3 // 4, count // 3, count - 2]):
        with VideoReader(path) as reader:
            assert (reader.read(indices) == frames[indices]).all()
            assert (reader.read(indices[::-1]) == frames[indices[::-1]]).all()


@pytest.mark.parametrize(
    "source, name, options",
    [
        ("a.mp4", "edit_list.mp4", ()),
        ("a.mkv", "cut.mkv", ()),
        ("hevc.mp4", "edit_list.mp4", ()),
        ("hevc.mkv", "leading_images.mkv", ()),
        ("refresh.mkv", "recovering.mkv", ()),
        ("a.ts", "cut.ts", ()),
        ("a.mkv", "negative_times.mkv", ("-avoid_negative_ts", "disabled")),
        ("a.mp4", "negative_times.mp4", ("-avoid_negative_ts", "disabled")),
    ],
)
def test_stream_copied_cut_equals_ffmpeg(source, name, options, tmp_path):
    """A cut with `-c copy` starts between keyframes: the file is intact, and the frames before the cut are dropped."""
    codec = {
        "hevc": ("-c:v", "libx265", "-x265-params", "log-level=none:keyint=10"),
        "refresh": (*YUV420, "-x264-params", "intra-refresh=1:keyint=10:bframes=0"),
    }
    make_video(tmp_path / source, *codec.get(source.split(".")[0], (*YUV420, "-g", 10, "-bf", 3)))
    path = tmp_path / name
    run_ffmpeg("-ss", 1.25, "-i", tmp_path / source, "-c", "copy", *options, path)
    expected = decode_with_ffmpeg(path, HEIGHT, WIDTH)
    assert 10 <= len(expected) < FRAMES
    for backend in READERS:
        with VideoReader(path, backend) as reader:
            reader.check()
            assert len(reader) == len(expected)
            assert (reader.read(range(len(expected))) == expected).all()
    assert_random_access(path, expected)


def test_stream_starting_between_keyframes_is_read(tmp_path):
    whole = make_video(tmp_path / "whole.ts", *YUV420, "-g", 10, "-bf", 2).read_bytes()
    path = tmp_path / "joined.ts"
    path.write_bytes(whole[len(whole) // 188 // 4 * 188 :])
    expected = decode_with_ffmpeg(path, HEIGHT, WIDTH)
    with VideoReader(path) as reader:
        reader.check()
        assert len(reader) == len(expected) > 9 and (reader.read(range(len(expected))) == expected).all()


def test_random_access_starts_at_nearest_keyframe(tmp_path, monkeypatch):
    path = make_video(tmp_path / "long.mp4", *YUV420, "-g", 10, "-bf", 2, frames=moving_image(200))
    expected = decode_with_ffmpeg(path, HEIGHT, WIDTH)
    decoded = []
    advance = FrameStream.advance
    monkeypatch.setattr(FrameStream, "advance", lambda self: decoded.append(self.position) or advance(self))
    with VideoReader(path) as reader:
        assert (reader.read([155, 42, 190]) == expected[[155, 42, 190]]).all()
    assert len(decoded) <= 1 + 3 * 10


def test_hidden_vp9_frames_are_detected():
    """First bytes of VP9 packets: shown, hidden, hidden with profile 3, repeated; a superframe ends with its index."""
    assert is_shown(bytes([0x82, 0])) and not is_shown(bytes([0x80, 0]))
    assert is_shown(bytes([0xB1, 0])) and not is_shown(bytes([0xB2, 0]))
    assert is_shown(bytes([0x88, 0])) and is_shown(bytes([0x80, 0xC1]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mirror", [None, "-display_hflip", "-display_vflip"])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_display_matrix_is_applied(backend, degrees, mirror, tmp_path):
    if not (degrees or mirror):
        return
    make_video(tmp_path / "flat.mp4", *YUV420, frames=moving_image(3))
    options = ["-display_rotation", degrees, *([mirror] if mirror else [])]
    run_ffmpeg(*options, "-i", tmp_path / "flat.mp4", "-c", "copy", tmp_path / "turned.mp4")
    upright = np.rot90(moving_image(3), degrees // 90, axes=(1, 2))
    if mirror:
        upright = np.flip(upright, 2 if mirror == "-display_hflip" else 1)
    with VideoReader(tmp_path / "turned.mp4", backend) as reader:
        frames = reader.read(range(3))
        assert frames.shape[1:3] == (reader.height, reader.width)
    assert (frames == decode_with_ffmpeg(tmp_path / "turned.mp4", *frames.shape[1:3])).all()
    if degrees in (0, 180) or not mirror:  # ffmpeg's two options do not commute with rotations by 90 degrees
        assert difference(frames, upright) < 6


@pytest.mark.parametrize(
    "aspect, suffix, width", [("2/1", "mp4", 128), ("1/2", "mp4", 32), ("4/3", "mkv", 85), ("16/15", "ts", 68)]
)
def test_non_square_pixels_are_scaled(aspect, suffix, width, tmp_path):
    options = f"-vf setsar={aspect} -c:v libx264".split()
    path = make_video(tmp_path / f"wide.{suffix}", *options, *YUV420, frames=moving_image(3))
    with VideoReader(path) as reader:
        assert (reader.height, reader.width) == (HEIGHT, width)
        frames = reader.read(range(3))
    assert (frames == decode_with_ffmpeg(path, HEIGHT, width, "-vf", f"scale={width}:{HEIGHT}")).all()


def test_changing_frame_size_is_scaled_to_first_frame(tmp_path):
    """As ffmpeg does."""
    make_video(tmp_path / "a.ts", *YUV420, frames=moving_image(5))
    make_video(tmp_path / "b.ts", *YUV420, frames=moving_image(5, 32, 40))
    path = tmp_path / "both.ts"
    path.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    expected = decode_with_ffmpeg(path, HEIGHT, WIDTH)
    with VideoReader(path) as reader:
        assert (reader.read(range(len(expected))) == expected).all() and len(expected) > 7


def test_video_of_one_frame_is_read(tmp_path):
    for name in ("one.mp4", "one.gif", "one.mkv"):
        path = make_video(tmp_path / name, frames=moving_image(1))
        with VideoReader(path) as reader:
            reader.check()
            assert len(reader) == 1 and reader.read([0, 0]).shape == (2, HEIGHT, WIDTH, 3)
            assert 0 <= reader.fps < 1000


def test_transparent_gif_is_blended_with_white(tmp_path):
    frames = [Image.fromarray(frame).convert("RGBA") for frame in moving_image(4)]
    for frame in frames:
        frame.paste((0, 0, 0, 0), (0, 0, 20, 20))
    frames[0].save(tmp_path / "clear.gif", save_all=True, append_images=frames[1:], duration=100, disposal=2)
    with VideoReader(tmp_path / "clear.gif") as reader:
        assert reader.fps == 10
        read = reader.read(range(len(reader)))
    assert (read == decode_with_ffmpeg(tmp_path / "clear.gif", HEIGHT, WIDTH)).all() and (read[:, 5, 5] == 255).all()


def test_hdr_note_is_printed_once(tmp_path, capfd):
    color = "setparams=color_trc=smpte2084:color_primaries=bt2020:colorspace=bt2020nc"
    options = f"-vf {color} -c:v libx264 -pix_fmt yuv420p10le".split()
    path = make_video(tmp_path / "hdr.mp4", *options, frames=moving_image(2))
    note_hdr.cache_clear()
    for _ in range(2):
        VideoReader(path).read([0, 1])
    error = capfd.readouterr().err
    assert error.count("PQ (HDR)") == 1 == error.count("\n")


@pytest.mark.parametrize("name", ["12:30.mp4", "-dash.mp4", "concat:a.mp4", "pipe:0.mp4", "%03d.mp4", "a\nb.mp4"])
def test_file_name_with_meaning_to_ffmpeg_is_read(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with write_video(name, 10) as write:
        write(moving_image(3))
    for backend in READERS:
        with VideoReader(name, backend) as reader:
            reader.check()
            assert difference(reader.read(range(3)), moving_image(3)) < 10


def test_metadata_that_is_not_text_is_ignored(tmp_path):
    make_video(tmp_path / "a.mkv", *YUV420, "-metadata", "title=abcdefgh", frames=moving_image(2))
    path = tmp_path / "b.mkv"
    path.write_bytes((tmp_path / "a.mkv").read_bytes().replace(b"abcdefgh", b"\xff\xfe" * 4))
    assert len(VideoReader(path)) == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_odd_size_is_read(backend, tmp_path):
    frames = moving_image(8, 47, 63)
    path = make_video(tmp_path / "odd.mkv", "-c:v", "ffv1", "-pix_fmt", "yuv444p", frames=frames)
    with VideoReader(path, backend) as reader:
        assert (reader.height, reader.width) == (47, 63)
        assert difference(reader.read(range(8)), frames) < 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_clip_with_b_frames_and_audio_is_read(backend, real_clip):
    with VideoReader(real_clip, backend) as reader:
        reader.check()
        assert len(reader) == CLIP_FRAMES and (reader.height, reader.width) == (CLIP_HEIGHT, CLIP_WIDTH)
        assert reader.fps == CLIP_FPS
        in_one = reader.read(range(20, 60))
        in_chunks = list(reader.chunks(range(20, 60)))
    assert max(map(len, in_chunks)) <= 16
    assert (np.concatenate(in_chunks) == in_one).all()
    assert (in_one == decode_with_ffmpeg(real_clip, CLIP_HEIGHT, CLIP_WIDTH)[20:60]).all()


def test_missing_decord_falls_back_to_pyav(tmp_path):
    """Without decord, the same frames are read."""
    path = make_video(tmp_path / "plain.mp4", *YUV420)
    program = (
        "import sys; sys.modules['decord'] = None\n"
        "from opensora.datasets import media\n"
        "assert media.decord is None\n"
        f"sys.stdout.buffer.write(media.VideoReader({str(path)!r}).read(range(4)).tobytes())\n"
        f"media.VideoReader({str(path)!r}, 'decord')"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert result.stdout == VideoReader(path).read(range(4)).tobytes()
    assert b"the decord backend needs the decord package" in result.stderr


def test_mindspore_imports_after_decord(run):
    """decord and MindSpore in one process, in the order that used to abort."""
    result = run("-c", "from opensora.datasets import media; import mindspore; print(mindspore.ops.ones((2, 2)).sum())")
    assert result.returncode == 0 and result.stdout.strip() == "4.0", result.stderr
