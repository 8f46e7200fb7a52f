"""Golden cases: reference outputs stored in tests/golden, weights and inputs derived from names alone.

Every tensor of a case is drawn from numpy's frozen legacy stream, seeded with crc32 of "case/kind/name".
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

GOLDEN = Path(__file__).parents[1] / "golden"


@cache
def _cases(file: str) -> dict:
    return json.loads((GOLDEN / file).read_text())


def case(name: str, file: str = "cases.json") -> dict:
    """The description of a case: model, config, inputs."""
    return _cases(file)[name]


def case_names(prefix: str, file: str = "cases.json") -> list[str]:
    return sorted(name for name in _cases(file) if name.startswith(prefix))


def load_case(name: str) -> dict[str, np.ndarray]:
    """The reference outputs of a case."""
    return load_file(GOLDEN / f"{name}.safetensors")


def normal(case_name: str, kind: str, name: str, shape) -> np.ndarray:
    seed = zlib.crc32(f"{case_name}/{kind}/{name}".encode())
    return np.random.RandomState(seed).standard_normal(tuple(shape)).astype(np.float32)


def weight(case_name: str, name: str, shape) -> np.ndarray:
    """A parameter by its torch name: scales near 1, biases near 0, matrices divided by sqrt(fan in)."""
    n = normal(case_name, "w", name, shape)
    if len(shape) == 1:
        return (1.0 + 0.1 * n if name.endswith(".weight") else 0.1 * n).astype(np.float32)
    return (n / np.sqrt(int(np.prod(shape[1:])))).astype(np.float32)


def given(case_name: str, name: str, shape) -> np.ndarray:
    """An input of a case: N(0, 1) float32."""
    return normal(case_name, "x", name, shape)


def relative_difference(actual, reference: np.ndarray) -> float:
    """Largest absolute difference over largest absolute reference value."""
    actual = np.asarray(actual, dtype=np.float64)
    assert actual.shape == reference.shape, (actual.shape, reference.shape)
    return float(np.abs(actual - reference).max() / np.abs(reference).max())


def gradient_difference(actual: Sequence, reference: Sequence[np.ndarray], smallest: float = 1e-3) -> float:
    """The largest relative difference of gradients, each relative to its largest value or `smallest` of that of all.

    A gradient that is zero in exact arithmetic, as of the bias of attention's keys, is nothing but rounding: relative
    to itself it differs with the CPU and with the order of sums.
    """
    floor = max(np.abs(gradient).max() for gradient in reference) * smallest
    assert len(actual) == len(reference)
    return max(
        float(np.abs(np.asarray(one, np.float64) - other).max() / max(np.abs(other).max(), floor))
        for one, other in zip(actual, reference)
    )
