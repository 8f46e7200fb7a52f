"""Videos and images in and out, with files made by ffmpeg on the spot."""
from __future__ import annotations

import subprocess
import sys

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from opensora.datasets.media import BACKENDS as ALL_BACKENDS
from opensora.datasets.media import VideoReader, decord, read_image, save_grid, save_image, write_video

needs_decord = pytest.mark.skipif(decord is None, reason="decord is not installed")
BACKENDS = [pytest.param(name, marks=needs_decord if name == "decord" else ()) for name in ALL_BACKENDS]
HEIGHT, WIDTH, FRAMES, FPS = 48, 64, 30, 10


def moving_picture(frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """Smooth colours that differ in every frame and have no symmetry: uint8 (T, H, W, 3)."""
    t, y, x = np.ogrid[:frames, :height, :width]
    waves = np.broadcast_arrays(np.sin(x / 9 + t / 3), np.sin(y / 7 - t / 4 + 1), np.cos((x + 2 * y) / 11 + t / 5))
    return np.clip(128 + 90 * np.stack(waves, -1), 0, 255).astype(np.uint8)


def ffmpeg(*arguments, stdin: bytes = b"") -> None:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *map(str, arguments)]
    subprocess.run(command, input=stdin, check=True)


def make_video(path, *options, frames=None):
    """Encodes `frames` at 10 per second with ffmpeg's own options; returns the path."""
    frames = moving_picture() if frames is None else frames
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    ffmpeg("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", FPS, "-i", "-", *options, path,
           stdin=frames.tobytes())
    return path


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference of the worst frame, in levels. Frames one step apart differ by some 20."""
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b).mean(axis=(1, 2, 3)).max())


# name -> ffmpeg's options. The last number is the largest difference between the backends: they scale up the colour
# planes of 10-bit and odd-sized pictures in different ways.
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
    "grey.mp4": (("-pix_fmt", "gray"), 0),
    "full_range.mp4": (("-vf", "scale=out_range=pc", "-color_range", "pc", *YUV420), 0),
    "bt709.mp4": (("-vf", "scale=out_color_matrix=bt709", "-colorspace", "bt709", *YUV420), 1.5),
    "bt2020.mp4": (("-vf", "scale=out_color_matrix=bt2020", "-colorspace", "bt2020nc", *YUV420), 1.5),
    "ten_bit.mp4": (("-pix_fmt", "yuv420p10le", "-crf", 5), 6),
    "vp9.webm": (("-c:v", "libvpx-vp9", "-pix_fmt", "yuv420p", "-crf", 5), 0),
}


@needs_decord
@pytest.mark.parametrize("name", KINDS)
def test_backends_give_the_same_frames(name, tmp_path):
    options, tolerance = KINDS[name]
    path = make_video(tmp_path / name, *options)
    with VideoReader(path, "decord") as one, VideoReader(path, "opencv") as other:
        count = len(other)
        assert len(one) == count == (16 if "variable" in name else FRAMES)
        assert (one.height, one.width, one.fps) == (other.height, other.width, other.fps)
        indices = [0, 5, count - 1, 2, 2]
        assert difference(one.read(indices), other.read(indices)) <= tolerance
        everything = other.read(range(count))
        assert difference(one.read(range(count)), everything) <= tolerance
    truth = moving_picture()
    if "variable" in name:
        truth = truth[[n for n in range(FRAMES) if n % 3 == 0 or n > 20]]
    if name == "grey.mp4":
        truth = truth @ np.array([[0.299], [0.587], [0.114]]).repeat(3, 1)
    assert difference(everything, truth) < 6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("degrees, turns", [(90, 1), (180, 2), (270, 3)])
def test_rotation_flag(backend, degrees, turns, tmp_path):
    make_video(tmp_path / "flat.mp4", *YUV420)
    ffmpeg("-display_rotation", degrees, "-i", tmp_path / "flat.mp4", "-c", "copy", tmp_path / "turned.mp4")
    upright = np.rot90(moving_picture(), turns, axes=(1, 2))
    with VideoReader(tmp_path / "turned.mp4", backend) as reader:
        assert (reader.height, reader.width) == upright.shape[1:3]
        assert difference(reader.read(range(FRAMES)), upright) < 6


@pytest.mark.parametrize("backend", BACKENDS)
def test_odd_sizes(backend, tmp_path):
    frames = moving_picture(8, 47, 63)
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
    path = make_video(tmp_path / "short.mp4", *YUV420, frames=moving_picture(5))
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


def test_truncated_video(tmp_path):
    whole = make_video(tmp_path / "whole.mkv", *YUV420).read_bytes()
    (tmp_path / "half.mkv").write_bytes(whole[:len(whole) // 2])
    with pytest.raises(ValueError, match="half.mkv: damaged"):
        VideoReader(tmp_path / "half.mkv").check()


def test_without_decord(tmp_path):
    """A machine without decord reads the same frames."""
    path = make_video(tmp_path / "plain.mp4", *YUV420)
    program = ("import sys; sys.modules['decord'] = None\n"
               "from opensora.datasets import media\n"
               "assert media.decord is None\n"
               f"sys.stdout.buffer.write(media.VideoReader({str(path)!r}).read(range(4)).tobytes())")
    frames = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True).stdout
    assert frames == VideoReader(path).read(range(4)).tobytes()


def test_mindspore_can_come_later(run):
    """decord and mindspore in one process, in the order that used to abort it."""
    result = run("-c", "from opensora.datasets import media; import mindspore; print(mindspore.ops.ones((2, 2)).sum())")
    assert result.returncode == 0 and result.stdout.strip() == "4.0", result.stderr


def test_unknown_backend(tmp_path):
    path = make_video(tmp_path / "plain.mp4", *YUV420, frames=moving_picture(2))
    with pytest.raises(ValueError, match="'torchvision'; choose from decord, opencv"):
        VideoReader(path, "torchvision")


# ---- images


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P"])
def test_images_of_all_modes(mode, tmp_path):
    picture = Image.fromarray(moving_picture(1)[0]).convert(mode)
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
    picture = moving_picture(1)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held so that the picture must turn clockwise
    Image.fromarray(picture).save(tmp_path / "turned.png", exif=exif)
    assert (read_image(tmp_path / "turned.png") == np.rot90(picture, -1)).all()


def test_no_image(tmp_path):
    save_image(tmp_path / "whole.png", moving_picture(1)[0])
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[:len(whole) // 2])
    (tmp_path / "text.png").write_text("not an image")
    for name in ("half.png", "text.png"):
        with pytest.raises(ValueError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="absent.png"):
        read_image(tmp_path / "absent.png")


def test_save_image(tmp_path):
    picture = moving_picture(1)[0]
    save_image(tmp_path / "folder" / "picture.png", picture)
    assert (read_image(tmp_path / "folder" / "picture.png") == picture).all()
    with pytest.raises(ValueError, match="choose from .jpg"):
        save_image(tmp_path / "picture.xyz", picture)


def test_grid(tmp_path):
    clip = moving_picture(10)
    save_grid(tmp_path / "sheet.png", [clip, clip[:, :24]], columns=4, gap=2)
    sheet = read_image(tmp_path / "sheet.png")
    assert sheet.shape == (2 * HEIGHT + 2, 4 * WIDTH + 3 * 2, 3)
    assert (sheet[:HEIGHT, -WIDTH:] == clip[9]).all() and (sheet[:HEIGHT, WIDTH + 2:2 * WIDTH + 2] == clip[3]).all()
    assert (sheet[HEIGHT + 2:HEIGHT + 26, :WIDTH] == clip[0, :24]).all() and (sheet[HEIGHT:HEIGHT + 2] == 255).all()


# ---- writing videos


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".gif"])
def test_written_video_reads_back(suffix, tmp_path):
    frames = moving_picture(9)
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
        write(moving_picture(3))
    about = subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-i", tmp_path / "clip.mp4"], stderr=subprocess.PIPE,
                           text=True, check=False).stderr
    assert "Video: h264" in about and "yuv420p" in about and "24 fps" in about


def test_odd_size_is_padded_not_rescaled(tmp_path):
    frames = moving_picture(3, 47, 63)
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
            write(moving_picture(3))
            raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]
    assert (tmp_path / "clip.mp4").read_text() == "the video of the run before"


def test_full_disk(tmp_path):
    """A limit on the size of files stands in for the disk."""
    program = ("import resource, numpy as np\n"
               "from opensora.datasets.media import write_video\n"
               "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
               "noise = np.random.default_rng(0).integers(0, 256, (30, 96, 128, 3), np.uint8)\n"
               f"with write_video({str(tmp_path / 'clip.mp4')!r}, 10) as write:\n"
               "    write(noise)")
    result = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, check=False)
    assert result.returncode != 0 and "is the disk full?" in result.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


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
