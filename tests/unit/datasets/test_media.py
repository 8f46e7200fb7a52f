"""Videos and images in and out, with files made by ffmpeg on the spot."""

from __future__ import annotations

import struct
import subprocess
import sys
from fractions import Fraction
from importlib.util import find_spec

import av
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image, ImageOps
from video_files import FRAMES, HEIGHT, WIDTH, difference, moving_image

from opensora.datasets.media import BACKENDS as ALL_BACKENDS
from opensora.datasets.media import VideoReader, read_image, save_grid, save_image, write_video
from opensora.datasets.media.color import RgbConverter, note_hdr
from opensora.datasets.media.frame_stream import FrameStream
from opensora.datasets.media.packet_index import is_shown

needs_decord = pytest.mark.skipif(find_spec("decord") is None, reason="decord is not installed")
BACKENDS = [pytest.param(name, marks=needs_decord if name == "decord" else ()) for name in ALL_BACKENDS]
FPS = 10


def ffmpeg(*arguments, stdin: bytes = b"") -> None:
    run_ffmpeg("-y", *map(str, arguments), stdin=stdin)


def run_ffmpeg(*arguments, stdin: bytes = b"") -> bytes:
    """Runs the ffmpeg program; returns what it writes to stdout."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *arguments]
    result = subprocess.run(command, input=stdin, capture_output=True, check=False)
    if result.returncode < 0:
        pytest.skip("this ffmpeg program crashes")  # 7.0.2, the newest that imageio has for Python 3.9, on .ts files
    assert result.returncode == 0, result.stderr
    return result.stdout


def make_video(path, *options, frames=None):
    """Encodes `frames` at 10 per second with ffmpeg's own options; returns the path."""
    frames = moving_image() if frames is None else frames
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    ffmpeg(
        "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", FPS, "-i", "-", *options, path, stdin=frames.tobytes()
    )
    return path


def decode_with_ffmpeg(path, height: int, width: int, *filters) -> np.ndarray:
    """All frames as the ffmpeg program converts them: uint8 RGB (T, height, width, 3)."""
    frames = run_ffmpeg("-i", path, "-fps_mode", "passthrough", *filters, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    return np.frombuffer(frames, np.uint8).reshape(-1, height, width, 3)


# name -> ffmpeg's options. The last number is the largest difference between PyAV and decord, which scales up the
# colour planes of 10-bit pictures in another way.
YUV420 = ("-pix_fmt", "yuv420p", "-crf", 5)
THIRDS = ("-vf", "select='not(mod(n,3))+gt(n,20)'", "-fps_mode", "vfr")
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
    "grey.mp4": (("-pix_fmt", "gray"), 0),
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
def test_frames_are_those_of_ffmpeg(name, tmp_path):
    options, tolerance = KINDS[name]
    path = make_video(tmp_path / name, *options)
    truth = decode_with_ffmpeg(path, HEIGHT, WIDTH)
    count = len(truth)
    with VideoReader(path) as reader:
        reader.check()
        assert len(reader) == reader.expected_frames() == count
        assert (reader.read(range(count)) == truth).all()
    assert_random_access(path, truth)
    if find_spec("decord"):
        with VideoReader(path, "decord") as reader:
            assert difference(reader.read(range(count)), truth) <= tolerance
    original = moving_image()
    if "variable" in name:
        original = original[[n for n in range(FRAMES) if n % 3 == 0 or n > 20]]
    if name == "grey.mp4":
        original = original @ np.array([[0.299], [0.587], [0.114]]).repeat(3, 1)
    if name != "program.mpg":  # made at another frame rate
        assert difference(truth, original) < 9


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
        ("hevc.mkv", "leading_pictures.mkv", ()),
        ("refresh.mkv", "recovering.mkv", ()),
        ("a.ts", "cut.ts", ()),
        ("a.mkv", "negative_times.mkv", ("-avoid_negative_ts", "disabled")),
        ("a.mp4", "negative_times.mp4", ("-avoid_negative_ts", "disabled")),
    ],
)
def test_cut_without_recoding(source, name, options, tmp_path):
    """Such files begin between keyframes: they are sound, and the frames before the cut are not shown."""
    codec = {
        "hevc": ("-c:v", "libx265", "-x265-params", "log-level=none:keyint=10"),
        "refresh": (*YUV420, "-x264-params", "intra-refresh=1:keyint=10:bframes=0"),
    }
    make_video(tmp_path / source, *codec.get(source.split(".")[0], (*YUV420, "-g", 10, "-bf", 3)))
    path = tmp_path / name
    ffmpeg("-ss", 1.25, "-i", tmp_path / source, "-c", "copy", *options, path)
    truth = decode_with_ffmpeg(path, HEIGHT, WIDTH)
    assert 10 <= len(truth) < FRAMES
    for backend in (None, "decord") if find_spec("decord") else (None,):
        with VideoReader(path, backend) as reader:
            reader.check()
            assert len(reader) == len(truth)
            assert (reader.read(range(len(truth))) == truth).all()
    assert_random_access(path, truth)


def test_stream_that_begins_between_keyframes(tmp_path):
    whole = make_video(tmp_path / "whole.ts", *YUV420, "-g", 10, "-bf", 2).read_bytes()
    path = tmp_path / "tuned_in.ts"
    path.write_bytes(whole[len(whole) // 188 // 4 * 188 :])
    truth = decode_with_ffmpeg(path, HEIGHT, WIDTH)
    with VideoReader(path) as reader:
        reader.check()
        assert len(reader) == len(truth) > 9 and (reader.read(range(len(truth))) == truth).all()


def test_random_access_decodes_from_the_nearest_keyframe(tmp_path, monkeypatch):
    path = make_video(tmp_path / "long.mp4", *YUV420, "-g", 10, "-bf", 2, frames=moving_image(200))
    truth = decode_with_ffmpeg(path, HEIGHT, WIDTH)
    decoded = []
    advance = FrameStream.advance
    monkeypatch.setattr(FrameStream, "advance", lambda self: decoded.append(self.position) or advance(self))
    with VideoReader(path) as reader:
        assert (reader.read([155, 42, 190]) == truth[[155, 42, 190]]).all()
    assert len(decoded) <= 1 + 3 * 10


def test_hidden_frames():
    """First bytes of VP9 packets: shown, hidden, hidden with profile 3, repeated; a superframe ends with its index."""
    assert is_shown(bytes([0x82, 0])) and not is_shown(bytes([0x80, 0]))
    assert is_shown(bytes([0xB1, 0])) and not is_shown(bytes([0xB2, 0]))
    assert is_shown(bytes([0x88, 0])) and is_shown(bytes([0x80, 0xC1]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mirror", [None, "-display_hflip", "-display_vflip"])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_display_matrix(backend, degrees, mirror, tmp_path):
    if not (degrees or mirror):
        return
    make_video(tmp_path / "flat.mp4", *YUV420, frames=moving_image(3))
    ffmpeg(
        "-display_rotation",
        degrees,
        *([mirror] if mirror else []),
        "-i",
        tmp_path / "flat.mp4",
        "-c",
        "copy",
        tmp_path / "turned.mp4",
    )
    upright = np.rot90(moving_image(3), degrees // 90, axes=(1, 2))
    if mirror:
        upright = np.flip(upright, 2 if mirror == "-display_hflip" else 1)
    with VideoReader(tmp_path / "turned.mp4", backend) as reader:
        frames = reader.read(range(3))
        assert frames.shape[1:3] == (reader.height, reader.width)
    assert (frames == decode_with_ffmpeg(tmp_path / "turned.mp4", *frames.shape[1:3])).all()
    if degrees in (0, 180) or not mirror:  # ffmpeg's two options do not commute with quarter turns
        assert difference(frames, upright) < 6


@pytest.mark.parametrize(
    "aspect, suffix, width", [("2/1", "mp4", 128), ("1/2", "mp4", 32), ("4/3", "mkv", 85), ("16/15", "ts", 68)]
)
def test_pixels_that_are_not_square(aspect, suffix, width, tmp_path):
    path = make_video(
        tmp_path / f"wide.{suffix}", "-vf", f"setsar={aspect}", "-c:v", "libx264", *YUV420, frames=moving_image(3)
    )
    with VideoReader(path) as reader:
        assert (reader.height, reader.width) == (HEIGHT, width)
        frames = reader.read(range(3))
    assert (frames == decode_with_ffmpeg(path, HEIGHT, width, "-vf", f"scale={width}:{HEIGHT}")).all()


def test_size_that_changes(tmp_path):
    """Later frames are scaled to the size of the first, as ffmpeg does."""
    make_video(tmp_path / "a.ts", *YUV420, frames=moving_image(5))
    make_video(tmp_path / "b.ts", *YUV420, frames=moving_image(5, 32, 40))
    path = tmp_path / "both.ts"
    path.write_bytes((tmp_path / "a.ts").read_bytes() + (tmp_path / "b.ts").read_bytes())
    truth = decode_with_ffmpeg(path, HEIGHT, WIDTH)
    with VideoReader(path) as reader:
        assert (reader.read(range(len(truth))) == truth).all() and len(truth) > 7


def test_one_frame(tmp_path):
    for name in ("one.mp4", "one.gif", "one.mkv"):
        path = make_video(tmp_path / name, frames=moving_image(1))
        with VideoReader(path) as reader:
            reader.check()
            assert len(reader) == 1 and reader.read([0, 0]).shape == (2, HEIGHT, WIDTH, 3)
            assert 0 <= reader.fps < 1000


def test_transparent_gif(tmp_path):
    frames = [Image.fromarray(frame).convert("RGBA") for frame in moving_image(4)]
    for frame in frames:
        frame.paste((0, 0, 0, 0), (0, 0, 20, 20))
    frames[0].save(tmp_path / "clear.gif", save_all=True, append_images=frames[1:], duration=100, disposal=2)
    with VideoReader(tmp_path / "clear.gif") as reader:
        assert reader.fps == 10
        read = reader.read(range(len(reader)))
    assert (read == decode_with_ffmpeg(tmp_path / "clear.gif", HEIGHT, WIDTH)).all() and (read[:, 5, 5] == 255).all()


def test_hdr_is_noted_once(tmp_path, capfd):
    path = make_video(
        tmp_path / "hdr.mp4",
        "-vf",
        "setparams=color_trc=smpte2084:color_primaries=bt2020:colorspace=bt2020nc",
        "-c:v",
        "libx264",
        "-pix_fmt",
        "yuv420p10le",
        frames=moving_image(2),
    )
    note_hdr.cache_clear()
    for _ in range(2):
        VideoReader(path).read([0, 1])
    error = capfd.readouterr().err
    assert error.count("PQ (HDR)") == 1 == error.count("\n")


@pytest.mark.parametrize("name", ["12:30.mp4", "-dash.mp4", "concat:a.mp4", "pipe:0.mp4", "%03d.mp4", "a\nb.mp4"])
def test_names_that_mean_something_to_ffmpeg(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with write_video(name, 10) as write:
        write(moving_image(3))
    for backend in (None, "decord") if find_spec("decord") else (None,):
        with VideoReader(name, backend) as reader:
            reader.check()
            assert difference(reader.read(range(3)), moving_image(3)) < 10


@pytest.mark.parametrize(
    "text",
    [
        "ffconcat version 1.0\nfile real.mp4\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2,\nreal.mp4\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=video 5000 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    ],
)
def test_files_that_refer_to_others(text, tmp_path):
    make_video(tmp_path / "real.mp4", *YUV420, frames=moving_image(2))
    (tmp_path / "list.mp4").write_text(text)
    with pytest.raises(ValueError, match="list.mp4: not a video that can be read .*playlists are refused"):
        VideoReader(tmp_path / "list.mp4")


def test_decompression_bomb(tmp_path):
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


def test_metadata_that_are_no_text(tmp_path):
    make_video(tmp_path / "a.mkv", *YUV420, "-metadata", "title=abcdefgh", frames=moving_image(2))
    path = tmp_path / "b.mkv"
    path.write_bytes((tmp_path / "a.mkv").read_bytes().replace(b"abcdefgh", b"\xff\xfe" * 4))
    assert len(VideoReader(path)) == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_odd_sizes(backend, tmp_path):
    frames = moving_image(8, 47, 63)
    path = make_video(tmp_path / "odd.mkv", "-c:v", "ffv1", "-pix_fmt", "yuv444p", frames=frames)
    with VideoReader(path, backend) as reader:
        assert (reader.height, reader.width) == (47, 63)
        assert difference(reader.read(range(8)), frames) < 3


@pytest.mark.parametrize("backend", BACKENDS)
def test_real_video(backend, media):
    """Its header promises 311 frames, there are 310."""
    with VideoReader(media / "flipping_a_pancake.mkv", backend) as reader:
        reader.check()
        assert len(reader) == 310 and (reader.height, reader.width, round(reader.fps)) == (240, 426, 30)
        in_one = reader.read(range(20, 60))
        in_chunks = list(reader.chunks(range(20, 60)))
    assert max(map(len, in_chunks)) <= 16
    assert (np.concatenate(in_chunks) == in_one).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_too_few_frames(backend, tmp_path):
    path = make_video(tmp_path / "short.mp4", *YUV420, frames=moving_image(5))
    with VideoReader(path, backend) as reader:
        reader.check()
        with pytest.raises(ValueError, match="short.mp4: 17 frames needed, 5 can be read"):
            reader.read(range(17))
        with pytest.raises(ValueError, match="short.mp4: 40 frames needed, 5 can be read"):
            list(reader.chunks(range(40)))
        with pytest.raises(ValueError, match=r"frames \[-1\] asked for"):
            reader.read([-1])
        assert len(reader.read(range(5))) == 5, "the reader can still be used"


@pytest.mark.parametrize("backend", BACKENDS)
def test_damaged_video(backend, media, capfd):
    path = media / "corrupted.mp4"
    with VideoReader(path, backend) as reader:
        with pytest.raises(ValueError, match="corrupted.mp4: 40 frames needed, 28 can be read"):
            reader.read(range(40))
        with pytest.raises(ValueError, match="corrupted.mp4: damaged: 28 frames can be read, its header promises 50"):
            reader.check()
        assert reader.read([27, 0]).shape == (2, 720, 1280, 3)
    assert capfd.readouterr().err == "", "what libraries mumble is not for the user"


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_video(backend, tmp_path, capfd):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video")
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", tmp_path / "sound.mp4")
    whole = make_video(tmp_path / "whole.mp4", *YUV420, "-movflags", "+faststart").read_bytes()
    (tmp_path / "head.mp4").write_bytes(whole[:1200])
    for name in ("empty.mp4", "text.mp4", "sound.mp4", "head.mp4"):
        with pytest.raises(ValueError, match=name):
            with VideoReader(tmp_path / name, backend) as reader:
                reader.check()
    assert capfd.readouterr().err == "", "what libraries mumble is not for the user"
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
def test_truncated_video(name, options, tmp_path):
    whole = make_video(tmp_path / name, *options).read_bytes()
    (tmp_path / f"half_{name}").write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(ValueError, match=f"half_{name}: damaged"):
        VideoReader(tmp_path / f"half_{name}").check()


def test_video_that_ends_between_frames(tmp_path):
    """FFmpeg reports no error; the container's own sizes tell."""
    path = make_video(tmp_path / "whole.mp4", *YUV420, "-movflags", "+faststart")
    with av.open(str(path)) as container:
        end = sorted(packet.pos for packet in container.demux(video=0) if packet.pos)[20]
    (tmp_path / "half.mp4").write_bytes(path.read_bytes()[:end])
    with pytest.raises(ValueError, match="half.mp4: damaged: .* its header promises 30 .the file ends too early"):
        VideoReader(tmp_path / "half.mp4").check()


def test_frames_that_the_decoder_fills_in(tmp_path):
    data = bytearray(make_video(tmp_path / "whole.ts", "-c:v", "mpeg2video", "-r", 25, "-g", 10).read_bytes())
    middle = len(data) // 188 // 2 * 188
    data[middle + 60 : middle + 180] = bytes(120)
    (tmp_path / "damaged.ts").write_bytes(data)
    VideoReader(tmp_path / "whole.ts").check()
    with VideoReader(tmp_path / "damaged.ts") as reader:
        with pytest.raises(ValueError, match="damaged.ts: damaged"):
            reader.check()


def test_without_decord(tmp_path):
    """A machine without decord reads the same frames."""
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


def test_mindspore_can_come_later(run):
    """decord and mindspore in one process, in the order that used to abort it."""
    result = run("-c", "from opensora.datasets import media; import mindspore; print(mindspore.ops.ones((2, 2)).sum())")
    assert result.returncode == 0 and result.stdout.strip() == "4.0", result.stderr


def test_unknown_backend(tmp_path):
    path = make_video(tmp_path / "plain.mp4", *YUV420, frames=moving_image(2))
    with pytest.raises(ValueError, match="'torchvision'; choose from decord, opencv"):
        VideoReader(path, "torchvision")


# ---- images


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P"])
def test_images_of_all_modes(mode, tmp_path):
    picture = Image.fromarray(moving_image(1)[0]).convert(mode)
    path = tmp_path / ("picture.tiff" if mode == "CMYK" else "picture.png")
    picture.save(path)
    assert (read_image(path) == np.asarray(picture.convert("RGB"))).all()


def test_transparent_parts_lie_on_white(tmp_path):
    for mode in ("RGBA", "LA"):
        picture = Image.new(mode, (4, 2), 0)
        picture.putalpha(Image.fromarray(np.uint8([[0, 0, 255, 255]] * 2)))
        picture.save(tmp_path / "clear.png")
        assert (read_image(tmp_path / "clear.png")[0, :, 0] == [255, 255, 0, 0]).all()
    palette = Image.fromarray(np.uint8([[0, 1]]), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "palette.png", transparency=0)
    assert read_image(tmp_path / "palette.png").tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_sixteen_bit_image(tmp_path):
    Image.fromarray(np.uint16([[0, 256, 65535]])).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png")[0].tolist() == [[0] * 3, [1] * 3, [255] * 3]


def test_exif_orientation(tmp_path):
    picture = moving_image(1)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must turn clockwise
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    assert (read_image(tmp_path / "turned.png") == np.rot90(picture, -1)).all()


@pytest.mark.parametrize("suffix", [".png", ".webp"])
@pytest.mark.parametrize(
    "exif",
    [
        b"II*\0",
        b"II*\0\x08\0\0\0\x02",
        b"II+\0\x08\0\0\0\x10" + bytes(7),
        bytes(range(64)),
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04abc\0\0\0\0\0",
    ],
)
def test_broken_exif_is_ignored(exif, suffix, tmp_path, recwarn):
    picture = moving_image(1)[0]
    Image.fromarray(picture).save(tmp_path / f"a{suffix}", exif=exif, lossless=True)
    assert (read_image(tmp_path / f"a{suffix}") == picture).all()
    assert not recwarn.list


@pytest.mark.parametrize("error", [struct.error("x"), TypeError("x"), AttributeError("x"), RecursionError()])
def test_whatever_pillow_raises_names_the_file(error, tmp_path, monkeypatch):
    save_image(tmp_path / "a.png", moving_image(1)[0])

    def fail(*_):
        raise error

    monkeypatch.setattr(ImageOps, "exif_transpose", fail)
    assert read_image(tmp_path / "a.png").shape == (HEIGHT, WIDTH, 3)
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(ValueError, match="a.png: cannot read"):
        read_image(tmp_path / "a.png")


def test_whatever_pyav_raises_names_the_file(tmp_path, monkeypatch):
    path = make_video(tmp_path / "a.mp4", *YUV420, frames=moving_image(2))

    def fail(*_, **__):
        raise KeyError("x")

    monkeypatch.setattr(av, "open", fail)
    with pytest.raises(ValueError, match="a.mp4"):
        VideoReader(path)


def test_image_formats_that_start_programs(tmp_path):
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match="a.png: cannot read"):
        read_image(tmp_path / "a.png")


def test_no_image(tmp_path):
    save_image(tmp_path / "whole.png", moving_image(1)[0])
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not an image")
    for name in ("half.png", "text.png"):
        with pytest.raises(ValueError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="absent.png"):
        read_image(tmp_path / "absent.png")


def test_save_image(tmp_path):
    picture = moving_image(1)[0]
    save_image(tmp_path / "folder" / "picture.png", picture)
    assert (read_image(tmp_path / "folder" / "picture.png") == picture).all()
    with pytest.raises(ValueError, match="choose from .jpg"):
        save_image(tmp_path / "picture.xyz", picture)


def test_grid(tmp_path):
    clip = moving_image(10)
    save_grid(tmp_path / "sheet.png", [clip, clip[:, :24]], columns=4, gap=2)
    sheet = read_image(tmp_path / "sheet.png")
    assert sheet.shape == (2 * HEIGHT + 2, 4 * WIDTH + 3 * 2, 3)
    assert (sheet[:HEIGHT, -WIDTH:] == clip[9]).all() and (sheet[:HEIGHT, WIDTH + 2 : 2 * WIDTH + 2] == clip[3]).all()
    assert (sheet[HEIGHT + 2 : HEIGHT + 26, :WIDTH] == clip[0, :24]).all() and (sheet[HEIGHT : HEIGHT + 2] == 255).all()


# ---- writing videos


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


def test_h264_for_every_player(tmp_path):
    with write_video(tmp_path / "clip.mp4", fps=24) as write:
        write(moving_image(3))
    about = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-i", tmp_path / "clip.mp4"], stderr=subprocess.PIPE, text=True, check=False
    ).stderr
    assert "Video: h264" in about and "yuv420p" in about and "24 fps" in about


def test_odd_size_is_padded_not_rescaled(tmp_path):
    frames = moving_image(3, 47, 63)
    with write_video(tmp_path / "odd.mp4", fps=10) as write:
        write(frames)
    back = VideoReader(tmp_path / "odd.mp4").read(range(3))
    assert back.shape == (3, 48, 64, 3)
    assert difference(back[:, :47, :63], frames) < 8
    assert np.abs(back[:, 47].astype(int) - back[:, 46]).mean() < 4


def test_stopped_run_leaves_nothing(tmp_path):
    (tmp_path / "clip.mp4").write_text("the video of the run before")
    with pytest.raises(KeyboardInterrupt):
        with write_video(tmp_path / "clip.mp4", fps=10) as write:
            write(moving_image(3))
            raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    assert (tmp_path / "clip.mp4").read_text() == "the video of the run before"


def test_full_disk(tmp_path):
    """A limit on the size of files stands in for the disk."""
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


def test_other_reasons_why_ffmpeg_stops(tmp_path):
    with pytest.raises(OSError, match="clip.mp4: .*ffmpeg stopped at 20000x2 pixels, 10 frames per second"):
        with write_video(tmp_path / "clip.mp4", fps=10) as write:
            write(np.zeros((3, 2, 20000, 3), np.uint8))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_frame_rate_that_is_none(fps, tmp_path):
    with pytest.raises(ValueError, match="clip.mp4: a video needs a positive number of frames"):
        with write_video(tmp_path / "clip.mp4", fps=fps):
            pass


def test_bad_frames(tmp_path):
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
