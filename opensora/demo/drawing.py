"""Draws clips and images of scenes."""

from __future__ import annotations

import math

import cv2
import numpy as np

from opensora.demo.scenes import DIRECTIONS, FRAMES, PALETTE, SIDE, Scene

SUPERSAMPLING = 8  # shapes are drawn this much larger, then downsampled
TURN = 2 * math.pi / 3  # rotation during a clip
# Moving shapes pass the center after this fraction of their path. At one half, left and right would differ only in the
# order of the frames, which a transformer without absolute positions learns last.
CENTER_TIME = 0.2


def draw_clip(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draws uint8 RGB (FRAMES, SIDE, SIDE, 3). `rng` chooses position and size of the shape."""
    middle, radius = SIDE / 2, rng.uniform(0.16, 0.21) * SIDE
    offset = rng.uniform(-0.06, 0.06, 2) * SIDE
    angle = growth = 0.0
    path = np.zeros(2)
    if scene.motion in DIRECTIONS:
        path = np.array(DIRECTIONS[scene.motion]) * rng.uniform(0.36, 0.42) * SIDE
    elif scene.motion == "turns":
        angle = TURN
    elif scene.motion in ("grows", "shrinks"):
        growth = rng.uniform(0.5, 0.6) * (1 if scene.motion == "grows" else -1)
    times = np.linspace(0, 1, FRAMES)
    centers = [middle + offset + path * (time - CENTER_TIME) for time in times]
    radii = [radius * (1 + growth * (2 * time - 1)) for time in times]
    return np.stack([_draw(scene, *frame) for frame in zip(centers, radii, angle * times)])


def draw_image(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Draws uint8 RGB (SIDE, SIDE, 3): the shape at any position, of any size that clips have."""
    center = SIDE / 2 + rng.uniform(-0.25, 0.25, 2) * SIDE
    return _draw(scene, center, rng.uniform(0.09, 0.3) * SIDE, 0.0)


def _draw(scene: Scene, center: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """Draws one frame.

    Args:
        center: x, y in pixels.
        radius: of the circumscribed circle, in pixels.
        angle: clockwise, in radians.
    """
    mask = np.zeros((SIDE * SUPERSAMPLING, SIDE * SUPERSAMPLING), np.float32)
    if scene.shape == "circle":
        x, y = np.rint(center * SUPERSAMPLING).astype(int).tolist()
        cv2.circle(mask, (x, y), round(radius * SUPERSAMPLING), (1.0,), cv2.FILLED)
    else:
        outline = center + radius * _corners(scene.shape, angle)
        cv2.fillPoly(mask, [np.rint(outline * SUPERSAMPLING).astype(np.int32)], (1.0,))
    coverage = np.asarray(cv2.resize(mask, (SIDE, SIDE), interpolation=cv2.INTER_AREA))[..., None]
    frame = coverage * PALETTE[scene.color] + (1 - coverage) * PALETTE[scene.background]
    return np.rint(frame).astype(np.uint8)


def _corners(shape: str, angle: float) -> np.ndarray:
    """Corners (N, 2), x and y, on the unit circle; the inner corners of a star are closer in. The first points up."""
    count = {"square": 4, "triangle": 3, "star": 10}[shape]
    start = angle + (math.pi / 4 if shape == "square" else 0)
    angles = start + 2 * math.pi * np.arange(count) / count
    radii = np.where(np.arange(count) % 2, 0.45, 1.0) if shape == "star" else np.ones(count)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], 1)
