"""Named resolutions and their sizes: each name has a table of aspect ratios (height / width).

Names ending in p or k have 17 ratios of about the same number of pixels, with even sides. Names that are numbers are
the side of a square: 40 sizes in steps of 1/16 of the side. A few entries of the tables that the published models were
trained with deviate from these formulas; they are listed explicitly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache

from opensora.errors import UserError

# Pixels per frame. 2k, 2048 and 2880 were added by Open-Sora v1.2.
PIXELS = {
    "144p": 36864,
    "256": 65536,
    "240p": 102240,
    "360p": 230400,
    "512": 262144,
    "480p": 409920,
    "720p": 921600,
    "1024": 1048576,
    "1080p": 2073600,
    "2k": 3686400,
    "2048": 4194304,
    "4k": 8294400,
    "2880": 8294400,
}

_FILM_RATIOS = (
    3 / 8,
    9 / 21,
    0.48,
    1 / 2,
    9 / 17,
    1 / 1.85,
    9 / 16,
    5 / 8,
    2 / 3,
    3 / 4,
    1,
    4 / 3,
    3 / 2,
    16 / 9,
    17 / 9,
    2,
    1 / 0.48,
)
# Heights and widths of the wide sizes, in 1/16 of the square's side; the tall sizes are these transposed.
_WIDE_16THS = (
    (8, 32),
    (8, 31),
    (8, 30),
    (8, 29),
    (9, 28),
    (9, 27),
    (9, 26),
    (10, 25),
    (10, 24),
    (11, 23),
    (11, 22),
    (11, 21),
    (12, 21),
    (12, 20),
    (13, 19),
    (13, 18),
    (14, 18),
    (14, 17),
    (15, 17),
    (15, 16),
)
_ONLY_WIDE = (11, 21)  # not transposed
# Ratio, height and width in units of 64 pixels; the ratios of this table do not exactly match its sizes.
_SIZES_2880 = """
    0.25 22 90, 0.26 22 87, 0.27 22 84, 0.28 22 81, 0.32 25 78, 0.33 25 75, 0.34 25 73, 0.4 28 70, 0.42 28 67,
    0.47 30 64, 0.49 30 61, 0.51 30 59, 0.55 33 60, 0.59 33 56, 0.68 36 53, 0.72 36 50, 0.78 39 50, 0.83 39 47,
    0.89 42 47, 0.93 42 45, 1.0 45 45, 1.07 45 42, 1.12 47 42, 1.21 47 39, 1.28 50 39, 1.39 50 36, 1.47 53 36,
    1.7 56 33, 1.82 60 33, 2.03 61 30, 2.13 64 30, 2.39 67 28, 2.5 70 28, 2.92 73 25, 3.0 75 25, 3.12 78 25,
    3.68 81 22, 3.82 84 22, 3.95 87 22, 4.0 90 22"""
_STORED = {"240p": {"0.67": (262, 393)}, "480p": {"0.48": (444, 925), "1.33": (740, 555)}}


def resolution(name) -> str:
    """Normalizes a name to a key of `PIXELS`: a lower-case string.

    Raises:
        UserError: unknown resolution.
    """
    key = str(name).lower()
    if key not in PIXELS:
        raise UserError(f"unknown resolution {name!r}; choose from {', '.join(PIXELS)}")
    return key


@cache
def aspect_sizes(name: str) -> Mapping[str, tuple[int, int]]:
    """The table of a resolution: ratio as text -> (height, width), in the published order.

    Raises:
        UserError: unknown resolution.
    """
    name = resolution(name)
    if name == "2880":
        rows = (row.split() for row in _SIZES_2880.split(","))
        return {ratio: (64 * int(height), 64 * int(width)) for ratio, height, width in rows}
    if name.isdigit():
        return _square_sizes(int(name))
    return _film_sizes(name)


def closest_ratio(height: int, width: int, name: str) -> str:
    """The ratio in the resolution's table closest to height / width; ties go to the first."""
    ratio = height / width
    return min(aspect_sizes(name), key=lambda key: abs(float(key) - ratio))


def _square_sizes(side: int) -> dict[str, tuple[int, int]]:
    tall = [(height, width) for width, height in reversed(_WIDE_16THS) if (width, height) != _ONLY_WIDE]
    sizes = ((height * side // 16, width * side // 16) for height, width in (*_WIDE_16THS, (16, 16), *tall))
    return {str(round(height / width, 2)): (height, width) for height, width in sizes}


def _film_sizes(name: str) -> dict[str, tuple[int, int]]:
    whole = math.floor if name == "144p" else _even
    sizes = {}
    for ratio in _FILM_RATIOS:
        height = whole(math.sqrt(PIXELS[name] * ratio) + 1e-4)
        sizes[f"{ratio:.2f}"] = height, whole(height / ratio + 1e-4)
    sizes.update(_STORED.get(name, {}))
    if name == "4k":  # the published table lists 0.62 before 0.56, which matters for ties
        order = sorted(sizes, key=lambda ratio: 0.555 if ratio == "0.62" else float(ratio))
        return {ratio: sizes[ratio] for ratio in order}
    return sizes


def _even(value: float) -> int:
    up = math.ceil(value)
    return up if up % 2 == 0 else math.floor(value)
