"""The scenes of the demo dataset, and their captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Optional, TypeVar

import numpy as np

COLORS = {  # RGB
    "red": (220, 40, 40),
    "orange": (245, 135, 30),
    "yellow": (245, 225, 60),
    "green": (40, 165, 70),
    "blue": (40, 80, 220),
    "purple": (150, 60, 190),
    "black": (20, 20, 20),
    "white": (240, 240, 240),
}
NEW_COLORS = {"cyan": (60, 210, 230)}  # not in the demo model's training data
PALETTE = {**COLORS, **NEW_COLORS}
SHAPES = ("circle", "square", "triangle", "star")
DIRECTIONS = {"moves left": (-1, 0), "moves right": (1, 0), "moves up": (0, -1), "moves down": (0, 1)}  # x, y
MOTIONS = (*DIRECTIONS, "turns", "grows", "shrinks")
FRAMES, SIDE, FPS = 17, 64, 8
T = TypeVar("T")


@dataclass(frozen=True)
class Scene:
    """A shape, its motion (None: a still image, not in the caption), and the background color."""

    color: str
    shape: str
    background: str
    motion: Optional[str] = None

    def caption(self, background_first: bool = False) -> str:
        """`a red circle moves right on a blue background`, or in another order."""
        shape, background = (
            f"{_with_article(self.color)} {self.shape}",
            f"on {_with_article(self.background)} background",
        )
        motion = [self.motion] if self.motion else []
        return " ".join([shape, background, *motion] if background_first else [shape, *motion, background])

    @property
    def is_held_out(self) -> bool:
        """Whether this combination of color, shape and background is excluded from training: a fifth of all."""
        colors = list(COLORS)
        return (colors.index(self.color) + SHAPES.index(self.shape) + colors.index(self.background)) % 5 == 0


def scenes(held_out: bool) -> list[Scene]:
    """All scenes with motion, either those held out or the others."""
    every = (Scene(*values) for values in product(COLORS, SHAPES, COLORS, MOTIONS))
    return [
        scene
        for scene in every
        if scene.is_held_out == held_out
        and scene.color != scene.background
        and not (scene.shape == "circle" and scene.motion == "turns")  # not visible
    ]


def sample_scenes(count: int, held_out: bool, rng: np.random.Generator) -> list[Scene]:
    """`count` scenes in random order; scenes repeat only after all have occurred."""
    every = scenes(held_out)
    return _balanced(every, count, rng)


def new_scenes(color: str, count: int, rng: np.random.Generator) -> list[Scene]:
    """`count` scenes with shapes of a new color. Each shape, background and motion is about as frequent as others."""
    backgrounds, shapes, motions = (_balanced(values, count, rng) for values in (tuple(COLORS), SHAPES, MOTIONS))
    return [  # a circle that turns looks still
        Scene(color, "square" if shape == "circle" and motion == "turns" else shape, background, motion)
        for shape, background, motion in zip(shapes, backgrounds, motions)
    ]


def _balanced(values: Sequence[T], count: int, rng: np.random.Generator) -> list[T]:
    """`count` of the values in random order; a value repeats only after all have occurred."""
    return [values[i] for _ in range(-(-count // len(values))) for i in rng.permutation(len(values))][:count]


def _with_article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
