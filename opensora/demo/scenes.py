"""The scenes of the demo dataset, their captions, and the two worlds that draw them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Optional, TypeVar

import numpy as np

from opensora.errors import UserError

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
TEXTURES = ("striped", "dotted")  # of backgrounds, besides plain ones
FPS = 8
STRIDE = 8  # pixels of the autoencoder's latents
T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """What scenes may consist of, and the size of their videos.

    Attributes:
        side: height and width in pixels.
        frames: of a clip, 4n+1.
        pairs: share of the scenes in its training data that have two objects.
        textures: of the backgrounds; None is plain.
        shaded: each shape is darker on one side, which shows the rotation of all shapes, even circles.
        blur: standard deviation of the Gaussian blur of each frame, in pixels; 0: none.
    """

    side: int
    frames: int = 17
    pairs: float = 0.0
    textures: tuple[Optional[str], ...] = (None,)
    shaded: bool = False
    blur: float = 0.0


WORLDS = {"small": World(64), "large": World(128, pairs=0.4, textures=(None, *TEXTURES), shaded=True, blur=0.8)}


def world_of_side(side: int) -> World:
    """Raises UserError: no world has videos of this size."""
    for world in WORLDS.values():
        if world.side == side:
            return world
    sides = ", ".join(str(world.side) for world in WORLDS.values())
    raise UserError(f"the model makes videos of {side} pixels; the scenes of the demo have {sides}")


@dataclass(frozen=True)
class Object:
    """A shape and its motion; None: it is still, and the caption does not mention a motion."""

    color: str
    shape: str
    motion: Optional[str] = None

    @property
    def caption(self) -> str:
        return " ".join(filter(None, (_with_article(self.color), self.shape, self.motion)))


@dataclass(frozen=True)
class Scene:
    """Objects of different colors, on a background of another color; a texture of None is plain."""

    objects: tuple[Object, ...]
    background: str
    texture: Optional[str] = None

    def caption(self, background_first: bool = False) -> str:
        """`a red circle moves right on a blue background`, or in another order.

        With two objects: `a red circle moves right and a blue star turns on a striped white background`, or beginning
        with `on a striped white background`.
        """
        words = " ".join(filter(None, (self.texture, self.background)))
        background = f"on {_with_article(words)} background"
        objects = " and ".join(item.caption for item in self.objects)
        if not background_first:
            return f"{objects} {background}"
        if len(self.objects) > 1:
            return f"{background} {objects}"
        (item,) = self.objects
        return " ".join(filter(None, (replace(item, motion=None).caption, background, item.motion)))

    @property
    def is_held_out(self) -> bool:
        """Whether training excludes it: a fifth of all combinations of color, shape and background, and every scene
        with one of them."""
        colors = list(COLORS)
        indices = [(colors.index(item.color), SHAPES.index(item.shape)) for item in self.objects]
        return any((color + shape + colors.index(self.background)) % 5 == 0 for color, shape in indices)

    @property
    def still(self) -> Scene:
        """The scene of an image."""
        return replace(self, objects=tuple(replace(item, motion=None) for item in self.objects))


def single(
    color: str, shape: str, background: str, motion: Optional[str] = None, texture: Optional[str] = None
) -> Scene:
    """A scene with one object."""
    return Scene((Object(color, shape, motion),), background, texture)


def scenes(held_out: bool, world: World) -> list[Scene]:
    """All scenes of one object with motion, either those held out or the others."""
    every = (single(*values) for values in product(COLORS, SHAPES, COLORS, MOTIONS, world.textures))
    return [
        scene
        for scene in every
        if scene.is_held_out == held_out
        and scene.objects[0].color != scene.background
        and _is_visible(scene.objects[0], world)
    ]


def sample_scenes(count: int, held_out: bool, rng: np.random.Generator, world: World, objects: int = 1) -> list[Scene]:
    """`count` scenes in random order; a scene of one object repeats only after all have occurred.

    Args:
        objects: of each scene. Each scene of two has, for its first object, one of those of one object.
    """
    drawn = _balanced(scenes(held_out, world), count, rng)
    return drawn if objects == 1 else [_with_partner(scene, held_out, world, rng) for scene in drawn]


def mixed_scenes(count: int, held_out: bool, rng: np.random.Generator, world: World) -> list[Scene]:
    """`count` scenes in random order, a share `world.pairs` of them with two objects."""
    pairs = round(world.pairs * count)
    drawn = sample_scenes(count - pairs, held_out, rng, world) + sample_scenes(pairs, held_out, rng, world, objects=2)
    return [drawn[i] for i in rng.permutation(count)]


def new_scenes(color: str, count: int, rng: np.random.Generator, world: World) -> list[Scene]:
    """`count` scenes with shapes of a new color. Each shape, background and motion is about as frequent as others."""
    backgrounds, shapes, motions = (_balanced(values, count, rng) for values in (tuple(COLORS), SHAPES, MOTIONS))
    textures = _balanced(world.textures, count, rng)
    objects = [Object(color, shape, motion) for shape, motion in zip(shapes, motions)]
    visible = [item if _is_visible(item, world) else replace(item, shape="square") for item in objects]
    return [Scene((item,), name, texture) for item, name, texture in zip(visible, backgrounds, textures)]


def _with_partner(scene: Scene, held_out: bool, world: World, rng: np.random.Generator) -> Scene:
    """The scene with a second object of another color, before or after the first."""
    (first,) = scene.objects
    colors = [color for color in COLORS if color not in (first.color, scene.background)]
    while True:
        second = Object(*(str(rng.choice(values)) for values in (colors, SHAPES, MOTIONS)))
        pair = replace(scene, objects=(first, second) if rng.random() < 0.5 else (second, first))
        if pair.is_held_out == held_out and _is_visible(second, world):
            return pair


def _is_visible(item: Object, world: World) -> bool:
    """Whether the motion can be seen: a circle that turns needs shading."""
    return world.shaded or (item.shape, item.motion) != ("circle", "turns")


def _balanced(values: Sequence[T], count: int, rng: np.random.Generator) -> list[T]:
    """`count` of the values in random order; a value repeats only after all have occurred."""
    return [values[i] for _ in range(-(-count // len(values))) for i in rng.permutation(len(values))][:count]


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
