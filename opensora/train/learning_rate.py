"""Learning-rate schedules with their names in diffusers; steps are optimizer steps."""

from __future__ import annotations

import math

from opensora.config.options import check_choice
from opensora.errors import UserError

POLYNOMIAL_END = 1e-7


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


# The factor of the base learning rate; progress is 0 at the end of the warm-up and 1 at the last step.
DECAYS = {
    "constant": lambda progress: 1.0,
    "constant_with_warmup": lambda progress: 1.0,
    "linear": lambda progress: max(0.0, 1 - progress),
    "cosine": lambda progress: max(0.0, _cosine(progress)),
    "cosine_with_restarts": lambda progress: _cosine(progress % 1) if progress < 1 else 0.0,
    "polynomial": lambda progress: 1 - min(1.0, progress),
}


def learning_rate(schedule: str, step: int, base: float, warmup_steps: int, total_steps: int) -> float:
    """The learning rate of optimizer step `step`, counted from 0.

    It rises linearly from 0 during `warmup_steps` (except for "constant"), then follows `schedule` to 0 (polynomial:
    to 1e-7) at `total_steps`.

    Raises:
        UserError: an unknown schedule, or a polynomial one whose base is not above its end.
    """
    check_choice("--lr_scheduler", schedule, DECAYS)
    if schedule != "constant" and step < warmup_steps:
        return base * step / warmup_steps
    factor = DECAYS[schedule]((step - warmup_steps) / max(1, total_steps - warmup_steps))
    if schedule != "polynomial":
        return base * factor
    if base <= POLYNOMIAL_END:
        raise UserError(f"--learning_rate {base}: the polynomial schedule ends at {POLYNOMIAL_END} and needs more")
    return POLYNOMIAL_END + (base - POLYNOMIAL_END) * factor
