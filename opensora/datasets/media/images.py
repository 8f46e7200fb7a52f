"""Reads and writes image files: uint8 RGB (H, W, 3), upright."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Union

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from opensora.errors import UserError
from opensora.utils.files import atomic_write

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
ANIMATION_SUFFIXES = (".gif", ".webp")
FONT_SIZE, LINE_HEIGHT = 14, 18  # pixels, of the labels of contact sheets

# Pillow detects the format by content, and some of its readers start other programs (EPS runs Ghostscript).
Image.init()
FORMATS = tuple(name for name in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF") if name in Image.OPEN)


def read_image(path: Union[str, Path]) -> np.ndarray:
    """Reads an image as uint8 RGB (H, W, 3).

    The EXIF orientation is applied, and transparency is blended with white. EXIF data that cannot be parsed is ignored.

    Raises:
        FileNotFoundError: no such file.
        UserError: not an image, a corrupt file, or more pixels than Pillow's limit (179 million).
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # corrupt files are reported once, by the error below
            with Image.open(path, formats=FORMATS) as image:
                image.load()
                return np.array(_to_rgb(_upright(image)))
    except Exception as error:  # Pillow's plugins raise almost any exception on corrupt files
        raise UserError(f"{path}: cannot read this image: {str(error) or type(error).__name__}") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # corrupt EXIF: struct.error, TypeError, AttributeError, ...; the pixels are intact
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def save_image(path: Union[str, Path], image: np.ndarray, comment: str = "") -> None:
    """Writes a uint8 RGB (H, W, 3) image; the suffix selects the format. Only JPEG files keep the comment."""
    check_image_suffix(path)
    with atomic_write(path) as temporary:
        Image.fromarray(image).save(temporary, quality=95, comment=comment)


def read_comment(path: Union[str, Path]) -> str:
    """The comment of a JPEG file; empty if there is none, or no such file."""
    try:
        with Image.open(path, formats=["JPEG"]) as image:
            return image.info.get("comment", b"").decode()
    except (OSError, ValueError):  # not an image, or not UTF-8
        return ""


def save_grid(path: Union[str, Path], rows: Sequence[np.ndarray], columns: int = 8, gap: int = 4) -> None:
    """Writes a contact sheet: one row per video (T, H, W, 3), with up to `columns` frames evenly spaced in time."""
    save_image(path, draw_grid([video[evenly_spaced(len(video), columns)] for video in rows], gap))


def save_animation(path: Union[str, Path], frames: Iterable[np.ndarray], fps: float, quality: int = 90) -> None:
    """Writes uint8 RGB frames (H, W, 3) as a looping GIF or WebP file. `quality`, 0 to 100, is that of WebP."""
    check_suffix(Path(path), ANIMATION_SUFFIXES)
    first, *others = map(Image.fromarray, frames)
    duration = max(1, round(1000 / fps))  # of a frame, in milliseconds
    with atomic_write(path) as temporary:
        first.save(temporary, save_all=True, append_images=others, duration=duration, loop=0, quality=quality)


def tile_videos(videos: Sequence[np.ndarray], columns: int, gap: int = 4) -> np.ndarray:
    """Puts videos (T, H, W, 3) side by side in rows of `columns`; returns one video, uint8 (T, H', W', 3).

    A video that ends before the others keeps showing its last frame.

    Raises:
        UserError: the videos have different sizes.
    """
    sizes = {f"{width}x{height}" for _, height, width, _ in (video.shape for video in videos)}
    if len(sizes) > 1:
        raise UserError(f"videos side by side need one size, these have {', '.join(sorted(sizes))}")
    length = max(map(len, videos))
    padded = np.stack([video[np.minimum(np.arange(length), len(video) - 1)] for video in videos], 1)
    return np.stack(
        [
            draw_grid([frames[first : first + columns] for first in range(0, len(frames), columns)], gap)
            for frames in padded
        ]
    )


def evenly_spaced(frames: int, count: int) -> np.ndarray:
    """The numbers of up to `count` frames, evenly spaced in time, with the first and the last."""
    return np.linspace(0, frames - 1, min(count, frames), dtype=int)


def draw_grid(strips: Sequence[np.ndarray], gap: int = 4, labels: Sequence[Sequence[str]] = ()) -> np.ndarray:
    """A contact sheet, uint8 (H, W, 3): one row for each strip of frames, uint8 (T, H, W, 3).

    Args:
        gap: pixels between frames.
        labels: for each row, the lines of text above it; lines that are too long are shortened.
    """
    height, width = (max(strip.shape[axis] for strip in strips) for axis in (1, 2))
    band = LINE_HEIGHT * max(map(len, labels), default=0)
    step = height + band + gap
    sheet = np.full((len(strips) * step - gap, max(map(len, strips)) * (width + gap) - gap, 3), 255, np.uint8)
    for row, strip in enumerate(strips):
        for column, frame in enumerate(strip):
            top, left = row * step + band, column * (width + gap)
            sheet[top : top + frame.shape[0], left : left + frame.shape[1]] = frame
    return _write_labels(sheet, labels, step) if labels else sheet


def _write_labels(sheet: np.ndarray, labels: Sequence[Sequence[str]], step: int) -> np.ndarray:
    """Writes the lines of row i at the top of its `step` pixels."""
    image, font = Image.fromarray(sheet), ImageFont.load_default(size=FONT_SIZE)
    draw = ImageDraw.Draw(image)
    for row, lines in enumerate(labels):
        for number, line in enumerate(lines):
            draw.text((2, row * step + number * LINE_HEIGHT), _fitting(line, sheet.shape[1] - 4, font), "black", font)
    return np.asarray(image)


def _fitting(line: str, width: int, font: Union[ImageFont.FreeTypeFont, ImageFont.ImageFont]) -> str:
    """`line`, shortened to `width` pixels."""
    line = line[:width]  # no letter is narrower than a pixel
    if font.getlength(line) <= width:
        return line
    while line and font.getlength(f"{line}...") > width:
        line = line[:-1]
    return f"{line}..."


def check_image_suffix(path: Union[str, Path]) -> None:
    """Raises UserError unless `save_image` can write a file with this suffix."""
    check_suffix(Path(path), IMAGE_SUFFIXES)


def check_suffix(path: Path, allowed: Iterable[str]) -> None:
    """Raises UserError unless the suffix of `path` is one of `allowed` (lower case, with the dot)."""
    if path.suffix.lower() not in allowed:
        raise UserError(
            f"{path}: cannot write {path.suffix or 'a file without suffix'}; choose from {', '.join(allowed)}"
        )
