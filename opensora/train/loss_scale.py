"""Loss scaling (Micikevicius et al. 2018, arXiv:1710.03740) against underflow of float16 gradients."""

from __future__ import annotations

from dataclasses import dataclass

GROWTH_INTERVAL = 1000  # consecutive steps without overflow until the scale doubles
LARGEST = 2.0**24


@dataclass
class LossScale:
    """The factor of the loss; a `dynamic` one doubles every `GROWTH_INTERVAL` steps and halves on overflow."""

    value: float = 1.0
    dynamic: bool = False
    good_steps: int = 0

    def update(self, finite: bool) -> None:
        """Updates the scale after a step; `finite`: whether its gradients were finite."""
        if not self.dynamic:
            return
        if not finite:
            self.value, self.good_steps = max(1.0, self.value / 2), 0
        elif self.good_steps + 1 < GROWTH_INTERVAL:
            self.good_steps += 1
        else:
            self.value, self.good_steps = min(LARGEST, 2 * self.value), 0

    def start(self, value: float) -> None:
        """Sets the initial value; without effect if the scale is not dynamic."""
        if self.dynamic:
            self.value = value
