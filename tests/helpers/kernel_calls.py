"""A call of a C++ kernel with its expected results, and random sizes and values for calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Optional

import numpy as np


@dataclass
class Call:
    """A kernel, its inputs and the expected outputs; `expected` is None if the kernel must reject the inputs.

    Inputs become float32, except those of 16 and 8 bits.

    In-place kernels: `changed` is the number of leading inputs that must afterwards equal `expected`.
    `magnitude`: factor by which the operator magnifies rounding errors, per element: norms divide by small numbers.
    """

    kernel: str
    inputs: Sequence[np.ndarray]
    expected: Optional[Sequence[np.ndarray]]
    changed: int = 0
    settings: str = ""
    magnitude: np.ndarray = 1.0
    shapes: list = field(init=False)

    def __post_init__(self):
        self.inputs = [x if x.itemsize < 4 else x.astype(np.float32) for x in map(np.asarray, self.inputs)]
        self.shapes = [x.shape for x in self.inputs]

    def __str__(self):
        return f"{self.kernel}{self.shapes} {self.settings}"


class Draw:
    """Random sizes and values."""

    def __init__(self, seed: int):
        self.random = np.random.RandomState(seed)

    def size(self, most: int = 9, least: int = 1) -> int:
        return int(self.random.randint(least, most + 1))

    def choice(self, *values):
        return values[self.random.randint(len(values))]

    def normal(self, *shape: int) -> np.ndarray:
        return self.random.standard_normal(shape).astype(np.float32)

    def epsilon(self) -> float:
        return float(np.float32(self.choice(1e-6, 1e-5, 1e-2)))


def doubles(*arrays: np.ndarray) -> list[np.ndarray]:
    return [x.astype(np.float64) for x in arrays]
