"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from opensora.config.options import option
from opensora.errors import UserError

if TYPE_CHECKING:
    from mindspore import Tensor


@dataclass(frozen=True)
class AdamW:
    """The published settings; weight decay applies to every parameter, norms and biases too."""

    group: ClassVar[str] = "optimizer"

    adam_beta1: float = option(0.9, "decay rate of AdamW's first moment")
    adam_beta2: float = option(0.999, "decay rate of AdamW's second moment")
    adam_epsilon: float = option(1e-15, "epsilon of AdamW")
    adam_weight_decay: float = option(1e-2, "weight decay of AdamW")

    def __post_init__(self):
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)} is not in [0, 1)")
        for name in ("adam_epsilon", "adam_weight_decay"):
            if not getattr(self, name) >= 0:
                raise UserError(f"--{name} {getattr(self, name)} is not 0 or more")

    def update(
        self,
        weights: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        gradient: Tensor,
        factor: float,
        learning_rate: float,
        step: int,
    ) -> None:
        """Updates weights and both moments, float32 (N,), in place.

        Args:
            factor: is multiplied with the gradient.
            step: counted from 1.
        """
        from opensora.ops import updates  # imports MindSpore, which the options of a command need not

        updates.adamw(
            weights,
            exp_avg,
            exp_avg_sq,
            gradient,
            factor,
            learning_rate,
            self.adam_weight_decay,
            self.adam_beta1,
            self.adam_beta2,
            self.adam_epsilon,
            step,
        )
