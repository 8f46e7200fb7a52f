"""Random conditioning masks of Open-Sora v1.1: `mask_ratios` of a training config.

A mask is bool (T,): True for frames to train on, False for conditioning frames. This module must not import MindSpore.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import numpy as np

from opensora.config.options import check_choice
from opensora.errors import UserError

QUARTER, IMAGE = "quarter_", "image_"
POSITIONS = ("random", "head", "tail", "head_tail")
NAMES = (
    "identity",
    *(length + position for length in (QUARTER, IMAGE) for position in POSITIONS),
    "random",
    "interpolate",
)
# Spellings in the published configs; v1.1 also prefixes every name with "mask_".
SPELLINGS = {"no": "identity", "intepolate": "interpolate"}


class MaskGenerator:
    """Draws random masks.

    Args:
        mask_ratios: name (see `NAMES`) -> probability. The sum must be 1; if "identity", which masks no frame, is
            missing, it gets the remaining probability.

    Raises:
        UserError: an unknown name or an invalid ratio.
    """

    def __init__(self, mask_ratios: Mapping[str, float]):
        ratios: dict[str, float] = {}
        for spelling, ratio in mask_ratios.items():
            name = _name(spelling)
            if name in ratios:
                first = next(key for key in mask_ratios if _name(key) == name)
                raise UserError(f"mask_ratios: {first!r} and {spelling!r} are the same key")
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
        """A random mask (T,) for a video of `num_frames` frames."""
        name = self._draw_name(rng.random())
        mask = np.ones(num_frames, bool)
        if num_frames <= 1 or name == "identity":
            return mask
        if name == "random":
            ratio = rng.uniform(0.1, 0.9)
            mask[:] = [rng.random() > ratio for _ in range(num_frames)]
            mask[-1] |= not mask.any()
        elif name == "interpolate":
            mask[rng.randint(0, 1) :: 2] = False
        else:
            length = rng.randint(1, max(1, num_frames // 4)) if name.startswith(QUARTER) else 1
            position = name.split("_", 1)[1]
            if position == "random":
                start = rng.randint(0, num_frames - length)
                mask[start : start + length] = False
            if position.startswith("head"):
                mask[:length] = False
            if position.endswith("tail"):
                mask[-length:] = False
        return mask

    def draw_batch(self, batch: int, num_frames: int, rng: random.Random) -> np.ndarray:
        """Random masks (B, T) for videos of equal length, drawn in order."""
        return np.stack([self.draw(num_frames, rng) for _ in range(batch)])

    def _draw_name(self, uniform: float) -> str:
        """The first name whose cumulative ratio exceeds `uniform`."""
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
