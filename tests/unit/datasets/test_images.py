"""Reading and writing images."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image, ImageOps
from video_files import HEIGHT, WIDTH, moving_image

from opensora.datasets.media import read_image, save_grid, save_image


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P"])
def test_image_of_any_mode_is_converted_to_rgb(mode, tmp_path):
    image = Image.fromarray(moving_image(1)[0]).convert(mode)
    path = tmp_path / ("image.tiff" if mode == "CMYK" else "image.png")
    image.save(path)
    assert (read_image(path) == np.asarray(image.convert("RGB"))).all()


def test_transparency_is_blended_with_white(tmp_path):
    for mode in ("RGBA", "LA"):
        image = Image.new(mode, (4, 2), 0)
        image.putalpha(Image.fromarray(np.uint8([[0, 0, 255, 255]] * 2)))
        image.save(tmp_path / "clear.png")
        assert (read_image(tmp_path / "clear.png")[0, :, 0] == [255, 255, 0, 0]).all()
    palette = Image.fromarray(np.uint8([[0, 1]]), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "palette.png", transparency=0)
    assert read_image(tmp_path / "palette.png").tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_sixteen_bit_image_is_converted(tmp_path):
    Image.fromarray(np.uint16([[0, 256, 65535]])).save(tmp_path / "deep.png")
    assert read_image(tmp_path / "deep.png")[0].tolist() == [[0] * 3, [1] * 3, [255] * 3]


def test_exif_orientation_is_applied(tmp_path):
    image = moving_image(1)[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # the image must be rotated clockwise
    Image.fromarray(image).save(tmp_path / "turned.png", exif=exif)
    assert (read_image(tmp_path / "turned.png") == np.rot90(image, -1)).all()


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
def test_corrupt_exif_is_ignored(exif, suffix, tmp_path, recwarn):
    image = moving_image(1)[0]
    Image.fromarray(image).save(tmp_path / f"a{suffix}", exif=exif, lossless=True)
    assert (read_image(tmp_path / f"a{suffix}") == image).all()
    assert not recwarn.list


@pytest.mark.parametrize("error", [struct.error("x"), TypeError("x"), AttributeError("x"), RecursionError()])
def test_any_error_of_pillow_names_the_file(error, tmp_path, monkeypatch):
    save_image(tmp_path / "a.png", moving_image(1)[0])

    def fail(*_):
        raise error

    monkeypatch.setattr(ImageOps, "exif_transpose", fail)
    assert read_image(tmp_path / "a.png").shape == (HEIGHT, WIDTH, 3)
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(ValueError, match="a.png: cannot read"):
        read_image(tmp_path / "a.png")


def test_image_format_that_starts_programs_is_rejected(tmp_path):
    (tmp_path / "a.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match="a.png: cannot read"):
        read_image(tmp_path / "a.png")


def test_file_that_is_no_image_is_rejected(tmp_path):
    save_image(tmp_path / "whole.png", moving_image(1)[0])
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not an image")
    for name in ("half.png", "text.png"):
        with pytest.raises(ValueError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="absent.png"):
        read_image(tmp_path / "absent.png")


def test_saved_image_reads_back(tmp_path):
    image = moving_image(1)[0]
    save_image(tmp_path / "folder" / "image.png", image)
    assert (read_image(tmp_path / "folder" / "image.png") == image).all()
    with pytest.raises(ValueError, match="choose from .jpg"):
        save_image(tmp_path / "image.xyz", image)


def test_grid_contains_the_frames(tmp_path):
    clip = moving_image(10)
    save_grid(tmp_path / "sheet.png", [clip, clip[:, :24]], columns=4, gap=2)
    sheet = read_image(tmp_path / "sheet.png")
    assert sheet.shape == (2 * HEIGHT + 2, 4 * WIDTH + 3 * 2, 3)
    assert (sheet[:HEIGHT, -WIDTH:] == clip[9]).all() and (sheet[:HEIGHT, WIDTH + 2 : 2 * WIDTH + 2] == clip[3]).all()
    assert (sheet[HEIGHT + 2 : HEIGHT + 26, :WIDTH] == clip[0, :24]).all() and (sheet[HEIGHT : HEIGHT + 2] == 255).all()
