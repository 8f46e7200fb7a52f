"""Clips of scenes, drawn."""

from __future__ import annotations

import math

import cv2
import numpy as np

from opensora.demo.scenes import COLORS, DIRECTIONS, FRAMES, SIDE, Scene

FINER = 8  # shapes are drawn this much larger, then averaged down
TURN = 2 * math.pi / 3  # in the course of a clip
# What moves passes the middle after this part of its way. Were it half, left and right would differ in nothing but the
# order of frames, and a transformer without absolute positions learns that last of all.
MIDDLE = 0.2


def draw_clip(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """uint8 RGB (FRAMES, SIDE, SIDE, 3). `rng` chooses where the shape is and how large."""
    middle, radius = SIDE / 2, rng.uniform(0.16, 0.21) * SIDE
    offset = rng.uniform(-0.06, 0.06, 2) * SIDE
    angle = growth = way = 0.0
    if scene.motion in DIRECTIONS:
        way = np.array(DIRECTIONS[scene.motion]) * rng.uniform(0.36, 0.42) * SIDE
    elif scene.motion == "turns":
        angle = TURN
    elif scene.motion in ("grows", "shrinks"):
        growth = rng.uniform(0.5, 0.6) * (1 if scene.motion == "grows" else -1)
    times = np.linspace(0, 1, FRAMES)
    return np.stack(
        [
            _draw(scene, middle + offset + way * (time - MIDDLE), radius * (1 + growth * (2 * time - 1)), angle * time)
            for time in times
        ]
    )


def draw_picture(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """uint8 RGB (SIDE, SIDE, 3): the shape anywhere, of any size that clips have."""
    place = SIDE / 2 + rng.uniform(-0.25, 0.25, 2) * SIDE
    return _draw(scene, place, rng.uniform(0.09, 0.3) * SIDE, 0.0)


def _draw(scene: Scene, center: np.ndarray, radius: float, angle: float) -> np.ndarray:
    """A frame. `center` is (x, y) in pixels, `radius` that of the circle around the shape, `angle` clockwise."""
    mask = np.zeros((SIDE * FINER, SIDE * FINER), np.float32)
    if scene.shape == "circle":
        cv2.circle(mask, np.rint(center * FINER).astype(int), round(radius * FINER), 1.0, cv2.FILLED)
    else:
        outline = center + radius * _corners(scene.shape, angle)
        cv2.fillPoly(mask, [np.rint(outline * FINER).astype(np.int32)], 1.0)
    mask = cv2.resize(mask, (SIDE, SIDE), interpolation=cv2.INTER_AREA)[..., None]
    frame = mask * COLORS[scene.color] + (1 - mask) * COLORS[scene.background]
    return np.rint(frame).astype(np.uint8)


def _corners(shape: str, angle: float) -> np.ndarray:
    """(N, 2) x, y on the unit circle, and for a star between its points further in; the first points up."""
    count = {"square": 4, "triangle": 3, "star": 10}[shape]
    start = angle + (math.pi / 4 if shape == "square" else 0)
    angles = start + 2 * math.pi * np.arange(count) / count
    radii = np.where(np.arange(count) % 2, 0.45, 1.0) if shape == "star" else np.ones(count)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], 1)
