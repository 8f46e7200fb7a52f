"""Coordinate search for the timesteps of a sampler (compass search, Kolda, Lewis & Torczon 2003, section 3).

One timestep at a time is moved down and up, and a move that lowers the error is kept. When no timestep improves, the
moves are halved, down to SHORTEST_MOVE. The last timesteps are moved first: their trials need the fewest model calls,
and they make room for the earlier ones. The first timestep stays: there the trajectory starts, as noise of a given
level.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Callable, Optional

import numpy as np

Timesteps = tuple[int, ...]
Error = Callable[[Timesteps, float], float]  # the error of timesteps, or anything above a limit if it is above it
SHORTEST_MOVE = 4  # shorter ones changed the error of the demo model by less than a hundredth of it


@dataclass(frozen=True)
class Choice:
    """Timesteps, their error, and the length of the moves that are tried next; 0: the search is finished."""

    timesteps: Timesteps
    error: float
    move: int


def first_choices(own: Iterable[float], lowest: int) -> dict[str, Timesteps]:
    """Spacings to start from, by name: the sampler's own, uniform, and quadratic, which is finest at the end.

    Args:
        own: the timesteps of the sampler's own spacing; the others have as many, from the first of them on.
        lowest: smallest timestep that the sampler can take.
    """
    own = np.asarray(list(own))
    left = 1 - np.arange(len(own)) / len(own)  # of the trajectory
    uniform, quadratic = ((own[0] + 1) * left**power - 1 for power in (1, 2))
    return {
        "own": _distinct(own, lowest),
        "uniform": _distinct(uniform, lowest),
        "quadratic": _distinct(quadratic, lowest),
    }


def first_move(timesteps: Timesteps) -> int:
    """Half the mean distance between timesteps."""
    return max(SHORTEST_MOVE, timesteps[0] // (2 * len(timesteps)))


def improve(choice: Choice, error_of: Error, lowest: int) -> Iterator[Choice]:
    """Yields every better choice, and the best one again when the moves become shorter."""
    while choice.move:
        before = choice.error
        for index in reversed(range(1, len(choice.timesteps))):
            for move in (-choice.move, choice.move):
                timesteps = _moved(choice.timesteps, index, move, lowest)
                if timesteps is None:
                    continue
                error = error_of(timesteps, choice.error)
                if error < choice.error:
                    choice = replace(choice, timesteps=timesteps, error=error)
                    yield choice
                    break
        if choice.error == before:
            half = choice.move // 2
            choice = replace(choice, move=half if half >= SHORTEST_MOVE else 0)
            yield choice


def _moved(timesteps: Timesteps, index: int, move: int, lowest: int) -> Optional[Timesteps]:
    """The timesteps with one of them moved, or None if it would meet its neighbor."""
    moved = timesteps[index] + move
    below = timesteps[index + 1] if index + 1 < len(timesteps) else lowest - 1
    if not below < moved < timesteps[index - 1]:
        return None
    return (*timesteps[:index], moved, *timesteps[index + 1 :])


def _distinct(timesteps: np.ndarray, lowest: int) -> Timesteps:
    """Rounded, at least `lowest`, and strictly decreasing."""
    distinct: list[int] = []
    for t in timesteps[::-1].round().astype(int):
        distinct.append(max(int(t), distinct[-1] + 1 if distinct else lowest))
    return tuple(distinct[::-1])
