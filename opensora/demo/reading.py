"""Recognizes the scene of a video from its frames, with classical image processing.

The background is the most common named color at the border. Each pixel belongs to the background, or to the object that
has the nearest color in one of its shades. The outline of an object determines its shape. The outline's change over
time determines the motion; the side on which an object is lighter shows its rotation.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple, Optional

import cv2
import numpy as np
from numpy.typing import ArrayLike

from opensora.demo.drawing import DARK_SIDE, TEXTURE_SHADE, shade
from opensora.demo.scenes import COLORS, PALETTE, Object, Scene

SHADES = 3  # of a color, to which pixels are compared
STEP = 4  # of the frames in which colors are searched
MIN_AREA = 0.004  # of a shape, as a fraction of the frame
RIM = 1 / 64  # of an outline, as a fraction of the frame's side: its mixed pixels may have a third color
MIN_DISTANCE = 0.08  # of a motion, as a fraction of the frame's side
MIN_GROWTH = 1.5  # ratio of areas
MIN_TURN = math.pi / 6
MIN_SHADING = 0.15  # standard deviation of the shade in an object, where 1 is the difference between both sides
MIN_TEXTURE = 0.15  # the same in the background, averaged over the frames
MIN_STRIPES = 3.0  # ratio of the variation across and along stripes
SYMMETRY = {"square": 4, "triangle": 3, "star": 5}  # order of rotational symmetry


class Outline(NamedTuple):
    """An object in one frame; lengths are fractions of the frame's side."""

    center: np.ndarray  # x, y
    area: float
    roundness: float  # area / area of the smallest enclosing circle
    solidity: float  # area / area of its convex hull
    points: np.ndarray  # complex, of the contour, relative to the center
    light: complex  # vector from the center to the light side; 0: the object has no shading


def read_scene(video: np.ndarray, colors: Collection[str] = tuple(COLORS)) -> Optional[Scene]:
    """The scene of a video, uint8 RGB (T, H, W, 3), its objects and background in some of the colors.

    The objects are sorted by the names of their colors. The motion of a still one is None. None if no color is that of
    an object in half of the frames.
    """
    names = sorted(colors)
    video = video.astype(np.float32)
    rows, columns = video[:, [0, 1, -2, -1]], video[:, :, [0, 1, -2, -1]]
    border = np.concatenate([rows.reshape(-1, 3), columns.reshape(-1, 3)])
    background = names[np.bincount(_nearest(border, [PALETTE[name] for name in names])).argmax()]
    others = [name for name in names if name != background]
    some = video[::STEP]
    present = [
        name
        for name, masks in zip(others, _masks(some, background, others))
        if 2 * sum(_inside(mask).mean() > MIN_AREA / 8 for mask in masks) >= len(some)
    ]
    masks = _masks(video, background, present)
    objects = [_object(video, name, of_name) for name, of_name in zip(present, masks)]
    found = tuple(item for item in objects if item is not None)
    return Scene(found, background, _texture(video, background, np.any(masks, 0))) if found else None


def _nearest(pixels: np.ndarray, values: Sequence[ArrayLike]) -> np.ndarray:
    """The index of the nearest RGB value for each pixel (..., 3)."""
    matrix = np.asarray(values, np.float32)
    return (pixels @ matrix.T - np.square(matrix).sum(1) / 2).argmax(-1)


def _masks(video: np.ndarray, background: str, colors: Collection[str]) -> list[np.ndarray]:
    """bool (T, H, W) for each color: the pixels that are nearer to it than to the background and the others."""
    shades = _shades(background, TEXTURE_SHADE)
    for name in colors:
        shades += _shades(name, DARK_SIDE)
    nearest = _nearest(video, shades) // SHADES
    return [nearest == number for number in range(1, 1 + len(colors))]


def _shades(color: str, factor: float) -> list[np.ndarray]:
    """The color, its other shade, and those between them."""
    return list(np.linspace(PALETTE[color], shade(color, factor), SHADES))


def _darkness(pixels: np.ndarray, color: str, factor: float) -> np.ndarray:
    """Where pixels (..., 3) are between the shades of a color: 0 for its own, 1 for the other."""
    first, second = (np.array(value, np.float32) for value in (PALETTE[color], shade(color, factor)))
    axis = second - first
    return np.clip((pixels - first) @ axis / (axis @ axis), 0, 1)


def _inside(mask: np.ndarray) -> np.ndarray:
    """bool (H, W) without its rim."""
    width = 1 + 2 * round(RIM * len(mask))
    return cv2.erode(mask.astype(np.uint8), np.ones((width, width))) > 0


def _object(video: np.ndarray, color: str, masks: np.ndarray) -> Optional[Object]:
    """The object in the masks (T, H, W) of its color; None if less than half of them show one."""
    outlines = [outline for outline in map(_outline, video, masks, [color] * len(video)) if outline is not None]
    if 2 * len(outlines) < len(video):
        return None
    shape = _shape(outlines)
    return Object(color, shape, _motion(outlines, shape))


def _outline(frame: np.ndarray, mask: np.ndarray, color: str) -> Optional[Outline]:
    """The largest connected region of the mask."""
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count < 2 or statistics[1:, cv2.CC_STAT_AREA].max() < MIN_AREA * mask.size:
        return None
    region = (labels == 1 + statistics[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)
    upsampled = cv2.resize(region * 255, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC) // 128
    contour = max(cv2.findContours(upsampled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0], key=cv2.contourArea)
    area, side = cv2.contourArea(contour), math.sqrt(upsampled.size)
    moments = cv2.moments(contour)
    center = np.array([moments["m10"], moments["m01"]]) / moments["m00"]
    points = (contour[:, 0] - center) / side
    return Outline(
        center / side,
        area / upsampled.size,
        area / (math.pi * cv2.minEnclosingCircle(contour)[1] ** 2),
        area / cv2.contourArea(cv2.convexHull(contour)),
        points[:, 0] + 1j * points[:, 1],
        _light_side(frame, region > 0, color),
    )


def _light_side(frame: np.ndarray, region: np.ndarray, color: str) -> complex:
    """The vector from the center of the region to its light side; only its direction counts. 0 without shading."""
    inside = _inside(region)
    y, x = np.nonzero(inside)
    darkness = _darkness(frame[inside], color, DARK_SIDE)
    if len(darkness) == 0 or darkness.std() < MIN_SHADING:
        return 0
    lightness = darkness.mean() - darkness
    return complex(lightness @ (x - x.mean()), lightness @ (y - y.mean()))


def _shape(outlines: list[Outline]) -> str:
    """An ideal star fills half of its convex hull; triangles fill 0.41 of the enclosing circle, squares 0.64."""
    roundness, solidity = (
        np.median([getattr(outline, name) for outline in outlines]) for name in ("roundness", "solidity")
    )
    if solidity < 0.8:
        return "star"
    return "triangle" if roundness < 0.53 else "square" if roundness < 0.8 else "circle"


def _motion(outlines: list[Outline], shape: str) -> Optional[str]:
    first, last = outlines[:3], outlines[-3:]
    path = np.mean([o.center for o in last], 0) - np.mean([o.center for o in first], 0)
    growth = np.mean([o.area for o in last]) / np.mean([o.area for o in first])
    if np.abs(path).max() > MIN_DISTANCE:
        horizontal = abs(path[0]) > abs(path[1])
        names = ("left", "right") if horizontal else ("up", "down")
        return f"moves {names[int(path[0 if horizontal else 1] > 0)]}"
    if max(growth, 1 / growth) > MIN_GROWTH:
        return "grows" if growth > 1 else "shrinks"
    return "turns" if abs(_turn(outlines, shape)) > MIN_TURN else None


def _turn(outlines: list[Outline], shape: str) -> float:
    """The total rotation of the light side in radians, summed over frames.

    Without shading, the rotation of the outline: a circle's shows none, those of other shapes show it modulo
    2 pi / symmetry.
    """
    lights = [outline.light for outline in outlines if outline.light]
    if 2 * len(lights) > len(outlines):
        symmetry, phases = 1, [np.angle(light) for light in lights]
    elif shape in SYMMETRY:
        symmetry = SYMMETRY[shape]
        phases = [np.angle((outline.points**symmetry).sum()) for outline in outlines]
    else:
        return 0.0
    steps = np.angle(np.exp(1j * np.diff(phases)))
    return float(steps.sum()) / symmetry


def _texture(video: np.ndarray, background: str, objects: np.ndarray) -> Optional[str]:
    """Stripes vary across columns only, dots also across rows.

    Args:
        objects: bool (T, H, W), where the background is hidden.
    """
    hidden = np.stack([cv2.dilate(mask.astype(np.uint8), np.ones((3, 3))) for mask in objects]) > 0
    shades = np.ma.masked_array(_darkness(video, background, TEXTURE_SHADE), hidden).mean(0)
    if shades.std() < MIN_TEXTURE:
        return None
    return "striped" if shades.mean(0).std() > MIN_STRIPES * shades.mean(1).std() else "dotted"
