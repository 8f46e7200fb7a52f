"""Which frames of a training video are given, in the way of Open-Sora v1.1: `mask_ratios` of a configuration.

A mask is bool (T,): True where a frame is trained, False where it is given. Needs no MindSpore.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import numpy as np

from opensora.config.options import check_choice
from opensora.errors import UserError

QUARTER, IMAGE = "quarter_", "image_"
PARTS = ("random", "head", "tail", "head_tail")
NAMES = ("identity", *(size + part for size in (QUARTER, IMAGE) for part in PARTS), "random", "interpolate")
# Spellings of the published configurations; v1.1 also has "mask_" before every name.
SPELLINGS = {"no": "identity", "intepolate": "interpolate"}


class MaskGenerator:
    """NoiseSource masks.

    Args:
        mask_ratios: how often each of `NAMES` is drawn. They add up to 1; without "identity", which gives no frame,
            that takes the rest.

    Raises:
        UserError: an unknown name, or ratios that are none.
    """

    def __init__(self, mask_ratios: Mapping[str, float]):
        ratios: dict[str, float] = {}
        for spelling, ratio in mask_ratios.items():
            name = _name(spelling)
            if name in ratios:
                raise UserError(f"mask_ratios: {spelling!r} says again what {name!r} says")
            if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 <= ratio <= 1:
                raise UserError(f"mask_ratios: {spelling} is {ratio!r}, should be a number from 0 to 1")
            ratios[name] = float(ratio)
        total = math.fsum(ratios.values())
        if "identity" not in ratios and total < 1:
            ratios["identity"], total = 1 - total, 1.0
        if abs(total - 1) > 1e-6:
            raise UserError(f"mask_ratios add up to {total:g}, should be 1")
        self.ratios = ratios

    def draw(self, num_frames: int, rng: random.Random) -> np.ndarray:
        """The mask of a video of `num_frames` frames, (T,) bool."""
        name = self._draw_name(rng.random())
        mask = np.ones(num_frames, bool)
        if num_frames <= 1 or name == "identity":
            return mask
        if name == "random":
            share = rng.uniform(0.1, 0.9)
            mask[:] = [rng.random() > share for _ in range(num_frames)]
            mask[-1] |= not mask.any()
        elif name == "interpolate":
            mask[rng.randint(0, 1) :: 2] = False
        else:
            size = rng.randint(1, max(1, num_frames // 4)) if name.startswith(QUARTER) else 1
            part = name.split("_", 1)[1]
            if part == "random":
                start = rng.randint(0, num_frames - size)
                mask[start : start + size] = False
            if part.startswith("head"):
                mask[:size] = False
            if part.endswith("tail"):
                mask[-size:] = False
        return mask

    def draw_batch(self, batch: int, num_frames: int, rng: random.Random) -> np.ndarray:
        """Masks (B, T) of videos of equal length, one after the other."""
        return np.stack([self.draw(num_frames, rng) for _ in range(batch)])

    def _draw_name(self, uniform: float) -> str:
        """The first name at which the running sum of the ratios exceeds the number."""
        total = 0.0
        for name, ratio in self.ratios.items():
            total += ratio
            if total > uniform:
                return name
        return name


def _name(spelling: str) -> str:
    name = spelling[len("mask_") :] if spelling.startswith("mask_") else spelling
    name = SPELLINGS.get(name, name)
    check_choice("mask_ratios:", name, NAMES)
    return name
