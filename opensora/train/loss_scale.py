"""Loss scaling for float16 (Micikevicius et al. 2018, arXiv:1710.03740), which would lose small gradients."""

from __future__ import annotations

from dataclasses import dataclass

GROWTH_INTERVAL = 1000  # steps without overflow until the scale doubles
LARGEST = 2.0**24


@dataclass
class LossScale:
    """What the loss is multiplied by; `dynamic` ones double from time to time and halve when gradients overflow."""

    value: float = 1.0
    dynamic: bool = False
    good_steps: int = 0

    def update(self, finite: bool) -> None:
        """Takes note of a step."""
        if not self.dynamic:
            return
        if not finite:
            self.value, self.good_steps = max(1.0, self.value / 2), 0
        elif self.good_steps + 1 < GROWTH_INTERVAL:
            self.good_steps += 1
        else:
            self.value, self.good_steps = min(LARGEST, 2 * self.value), 0

    def start(self, value: float) -> None:
        """Begins with another value, where there is scaling at all."""
        if self.dynamic:
            self.value = value
