"""An exponential moving average of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from opensora.config.options import option
from opensora.errors import UserError

if TYPE_CHECKING:
    from mindspore import Tensor


@dataclass(frozen=True)
class EMA:
    """shadow <- decay * shadow + (1 - decay) * weights.

    The decay rises to `ema_decay`: after `ema_start_step` updates, and the one after, that only copy the weights, it is
    (1 + s) / (10 + s) at the s-th. Without `warm_up` it is `ema_decay` from the first update on, as for the VAE.
    """

    group: ClassVar[str] = "optimizer"

    ema_decay: float = option(0.9999, "decay of the moving average per step, after its warm-up")
    ema_start_step: int = option(0, "optimizer step at which the average starts")
    warm_up: bool = True

    def __post_init__(self):
        if not 0 <= self.ema_decay <= 1:
            raise UserError(f"--ema_decay {self.ema_decay} is not in [0, 1]")
        if self.ema_start_step < 0:
            raise UserError(f"--ema_start_step {self.ema_start_step} is not 0 or more")

    def decay(self, update: int) -> float:
        """The decay of an update, counted from 1."""
        if not self.warm_up:
            return self.ema_decay
        s = max(0, update - self.ema_start_step - 1)
        return min(self.ema_decay, (1 + s) / (10 + s)) if s else 0.0

    def update(self, shadow: Tensor, weights: Tensor, update: int) -> None:
        """Updates `shadow` in place."""
        from opensora.ops import updates  # imports MindSpore, which the options of a command need not

        updates.lerp_(shadow, weights, 1 - self.decay(update))
