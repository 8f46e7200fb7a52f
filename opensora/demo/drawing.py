"""Draws clips and images of scenes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple, Optional

import cv2
import numpy as np

from opensora.demo.scenes import DIRECTIONS, PALETTE, Object, Scene, World

SUPERSAMPLING = 4  # frames are drawn this much larger, then downsampled
# Moving shapes pass the center of their cell after this fraction of their path, if the cell is large enough. At one
# half, left and right would differ only in the order of the frames, which a transformer without absolute positions
# learns last.
CENTER_TIME = 0.2
# Lengths in fractions of the frame's side.
RADII = {1: (0.17, 0.2), 2: (0.15, 0.165)}  # of the circumscribed circle, by the number of objects
PATH = (0.31, 0.35)
OFFSET = 0.06  # of the center of a shape from that of its cell
MARGIN = 0.025  # between shapes and the border of their cells
PERIOD = 0.125  # of textures
DOT = 0.022  # standard deviation of the Gaussian that shades a dot
TURN = (0.55 * math.pi, 0.75 * math.pi)  # rotation during a clip, clockwise
GROWTH = (0.2, 0.27)  # of the radius, from the middle of the clip to its end
# Shades are darker by this factor; those of black are lighter.
TEXTURE_SHADE, DARK_SIDE = 0.85, 0.55
SHADING_WIDTH = 1.2  # of the transition from the light side to the dark one, in radii


class Pose(NamedTuple):
    """A shape in one frame: center (x, y) and radius in fractions of the frame's side, angle clockwise in radians."""

    center: np.ndarray
    radius: float
    angle: float


def shade(color: str, factor: float) -> np.ndarray:
    """The other RGB value of a color, in textures and shading: darker by the factor, or lighter if it is black."""
    value = np.array(PALETTE[color], float)
    return value * factor if value.max() > 100 else value + 128 * (1 - factor)


def draw_clip(scene: Scene, rng: np.random.Generator, world: World, frames: Optional[int] = None) -> np.ndarray:
    """Draws uint8 RGB (T, side, side, 3). `rng` chooses positions and sizes.

    Args:
        frames: T; default: that of the world. The motion lasts for the whole clip.
    """
    times = np.linspace(0, 1, frames or world.frames)
    moving = [_Movement(item, cell, len(scene.objects), rng) for item, cell in zip(scene.objects, _cells(scene, rng))]
    background = _background(scene, world)
    return np.stack([_draw(scene, background, [item.pose(time) for item in moving], world) for time in times])


def draw_image(scene: Scene, rng: np.random.Generator, world: World) -> np.ndarray:
    """Draws uint8 RGB (side, side, 3): the shapes at any position in their cells, of any size that clips have."""
    low, high = RADII[len(scene.objects)]
    poses = []
    for center, size in _cells(scene, rng):
        radius = rng.uniform(low * (1 - GROWTH[1]), high * (1 + GROWTH[1]))
        poses.append(Pose(center + rng.uniform(-1, 1, 2) * np.maximum(size / 2 - radius - MARGIN, 0), radius, 0.0))
    return _draw(scene, _background(scene, world), poses, world)


def detail_window(scene: Scene, clip: np.ndarray, rng: np.random.Generator, world: World) -> tuple[slice, ...]:
    """Indices of a part of a clip (T, H, W, 3) of half its height and width, around a part of an object.

    It begins at a multiple of the textures' period, so that these lie in it as in the clip.
    """
    background = draw_clip(replace(scene, objects=()), rng, world, frames=1)
    positions = np.argwhere((clip != background).any(-1))[:, 1:]
    corner = rng.choice(positions) - rng.uniform(0.2, 0.8, 2) * world.side / 2
    step = PERIOD * world.side
    row, column = (np.rint(np.clip(corner, 0, world.side / 2) / step) * step).astype(int)
    return slice(None), slice(row, row + world.side // 2), slice(column, column + world.side // 2)


def _cells(scene: Scene, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Center and size (x, y) of the part of the frame in which each object stays.

    Of two objects the first is on the left or above: paths along a cell's longer side are longer.
    """
    if len(scene.objects) == 1:
        return [(np.full(2, 0.5), np.ones(2))]
    axes = {int(DIRECTIONS[item.motion][0] != 0) for item in scene.objects if item.motion in DIRECTIONS}
    axis = axes.pop() if len(axes) == 1 else int(rng.integers(2))  # along which the frame is divided: 0 x, 1 y
    size = np.where(np.arange(2) == axis, 0.5, 1.0)
    return [(np.where(np.arange(2) == axis, middle, 0.5), size) for middle in (0.25, 0.75)]


class _Movement:
    """The path, size and rotation of an object in its cell."""

    def __init__(self, item: Object, cell: tuple[np.ndarray, np.ndarray], objects: int, rng: np.random.Generator):
        center, size = cell
        self.radius = rng.uniform(*RADII[objects])
        self.turn = rng.uniform(*TURN) if item.motion == "turns" else 0.0
        self.growth = {"grows": 1, "shrinks": -1}.get(item.motion or "", 0) * rng.uniform(*GROWTH)
        reach = size / 2 - self.radius * (1 + abs(self.growth)) - MARGIN  # of the shape's center from the cell's
        offset = np.clip(rng.uniform(-OFFSET, OFFSET, 2), -reach, reach)
        direction = np.array(DIRECTIONS.get(item.motion or "", (0, 0)))
        length = np.minimum(rng.uniform(*PATH), 2 * reach)
        end = np.minimum((1 - CENTER_TIME) * length, reach)
        self.start = center + np.where(direction, direction * (end - length), offset)
        self.path = direction * length

    def pose(self, time: float) -> Pose:
        return Pose(self.start + self.path * time, self.radius * (1 + self.growth * (2 * time - 1)), self.turn * time)


def _background(scene: Scene, world: World) -> np.ndarray:
    """uint8 RGB (H, W, 3), larger than a frame by SUPERSAMPLING."""
    side = world.side * SUPERSAMPLING
    period = PERIOD * side
    x, y = np.meshgrid(*2 * [(np.arange(side) + 0.5) % period - period / 2])
    shading = np.zeros((side, side))
    if scene.texture == "striped":
        shading = 0.5 - 0.5 * np.sin(2 * math.pi * x / period)
    elif scene.texture == "dotted":
        shading = np.exp(-(x**2 + y**2) / (2 * (DOT * side) ** 2))
    return _between(scene.background, TEXTURE_SHADE, shading)


def _draw(scene: Scene, background: np.ndarray, poses: list[Pose], world: World) -> np.ndarray:
    canvas = background.copy()
    for item, pose in zip(scene.objects, poses):
        y, x = np.nonzero(_outline(canvas, item.shape, pose))
        amount = _shading(x, y, pose, len(canvas)) if world.shaded else np.zeros(len(x))
        canvas[y, x] = _between(item.color, DARK_SIDE, amount)
    frame = cv2.resize(canvas, (world.side, world.side), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.GaussianBlur(frame, (0, 0), world.blur) if world.blur else frame)


def _between(color: str, factor: float, amount: np.ndarray) -> np.ndarray:
    """uint8 RGB (..., 3) from the color, where the amount (...) is 0, to its other shade, where it is 1."""
    first, second = np.array(PALETTE[color], np.float32), shade(color, factor)
    return np.rint(first + amount[..., None] * (second - first)).astype(np.uint8)


def _shading(x: np.ndarray, y: np.ndarray, pose: Pose, side: int) -> np.ndarray:
    """0 on the light side of a shape, which is the upper one before it turns; 1 on the dark side."""
    right, down = ((values + 0.5) / side - middle for values, middle in zip((x, y), pose.center))
    # Not a matrix product: OpenBLAS can block forever if one thread computes with it while another starts a process.
    depth = (down * math.cos(pose.angle) - right * math.sin(pose.angle)) / pose.radius
    return np.clip(0.5 + depth / SHADING_WIDTH, 0, 1)


def _outline(canvas: np.ndarray, shape: str, pose: Pose) -> np.ndarray:
    """bool (H, W): the pixels of the shape."""
    mask = np.zeros(canvas.shape[:2], np.uint8)
    points = (pose.center + pose.radius * _corners(shape, pose.angle)) * len(canvas)
    cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], (1,))
    return mask.astype(bool)


def _corners(shape: str, angle: float) -> np.ndarray:
    """Corners (N, 2), x and y, on the unit circle; the inner corners of a star are closer in. The first points up."""
    count = {"square": 4, "triangle": 3, "star": 10, "circle": 90}[shape]
    start = angle + (math.pi / 4 if shape == "square" else 0)
    angles = start + 2 * math.pi * np.arange(count) / count
    radii = np.where(np.arange(count) % 2, 0.45, 1.0) if shape == "star" else np.ones(count)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], 1)
