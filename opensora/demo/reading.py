"""Recognizes the scene of a video from its frames, with classical image processing.

The background is the most common named color at the border, the shape the region that differs from it. Its outline
determines the kind of shape, and the outline's change over time the motion.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple, Optional

import cv2
import numpy as np

from opensora.demo.scenes import COLORS, PALETTE, Scene

MIN_COLOR_DISTANCE = 80  # between a pixel of the shape and the background, RGB
MIN_AREA = 0.01  # of a shape, as a fraction of the frame
MIN_DISTANCE = 0.12  # of a motion, as a fraction of the frame's side
MIN_GROWTH = 1.6  # ratio of areas
MIN_TURN = math.pi / 6
SYMMETRY = {"square": 4, "triangle": 3, "star": 5}  # order of rotational symmetry


class Outline(NamedTuple):
    """The shape in one frame; lengths are fractions of the frame's side."""

    center: np.ndarray  # x, y
    area: float
    roundness: float  # area / area of the smallest enclosing circle
    solidity: float  # area / area of its convex hull
    points: np.ndarray  # complex, of the contour, relative to the center


def read_scene(video: np.ndarray, colors: Collection[str] = tuple(COLORS)) -> Optional[Scene]:
    """The scene of a video, uint8 RGB (T, H, W, 3), in one of the colors.

    Its motion is None for a still shape. None if fewer than half of the frames show a shape.
    """
    background = _nearest_color(
        np.concatenate(
            [
                video[:, :2].reshape(-1, 3),
                video[:, -2:].reshape(-1, 3),
                video[:, :, :2].reshape(-1, 3),
                video[:, :, -2:].reshape(-1, 3),
            ]
        ),
        colors,
    )
    masks = [_mask(frame, background) for frame in video]
    outlines = [outline for outline in map(_outline, masks) if outline is not None]
    if 2 * len(outlines) < len(video):
        return None
    inside = [frame[cv2.erode(mask, np.ones((3, 3))) > 0] for frame, mask in zip(video, masks)]
    color = _nearest_color(np.concatenate(inside), set(colors) - {background})
    shape = _shape(outlines)
    return Scene(color, shape, background, _motion(outlines, shape))


def _nearest_color(pixels: np.ndarray, known: Collection[str]) -> str:
    """The name of the most common color."""
    names = sorted(known)
    palette = np.array([PALETTE[name] for name in names], float)
    nearest = np.linalg.norm(pixels[:, None] - palette, axis=-1).argmin(1)
    return names[np.bincount(nearest, minlength=len(names)).argmax()]


def _mask(frame: np.ndarray, background: str) -> np.ndarray:
    """uint8 (H, W): the largest connected region of another color."""
    different = np.linalg.norm(frame.astype(float) - PALETTE[background], axis=-1) > MIN_COLOR_DISTANCE
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(different.astype(np.uint8))
    if len(statistics) < 2:
        return np.zeros(frame.shape[:2], np.uint8)
    return (labels == 1 + statistics[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)


def _outline(mask: np.ndarray) -> Optional[Outline]:
    if mask.mean() < MIN_AREA:
        return None
    upsampled = cv2.resize(mask * 255, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC) // 128
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
    )


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
    return "turns" if shape in SYMMETRY and abs(_turn(outlines, SYMMETRY[shape])) > MIN_TURN else None


def _turn(outlines: list[Outline], symmetry: int) -> float:
    """The total rotation in radians, summed over frames, because a rotation by 2 pi / symmetry is not visible."""
    phases = [np.angle((outline.points**symmetry).sum()) for outline in outlines]
    steps = np.angle(np.exp(1j * np.diff(phases)))
    return float(steps.sum()) / symmetry
