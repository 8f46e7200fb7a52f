"""The video sizes that the models support."""

from __future__ import annotations

from opensora.config.generations import SIZE_STEP
from opensora.errors import UserError

MIN_HXW, MAX_HXW = 102400, 236544  # pixels of a frame: the range that the published weights were trained on


def check_size(num_frames: int, height: int, width: int, temporal_stride: int = 4, step: int = SIZE_STEP) -> None:
    """Raises UserError, with the nearest valid values, for an unsupported size.

    Args:
        step: height and width are multiples of it.
    """
    problems = []
    if num_frames < 1 or (num_frames - 1) % temporal_stride:
        low = max(0, num_frames - 1) // temporal_stride * temporal_stride + 1
        problems.append(
            f"num_frames {num_frames} is not {temporal_stride}n+1 (nearest: {low}, {low + temporal_stride})"
        )
    for name, value in (("height", height), ("width", width)):
        if value < step or value % step:
            low = max(step, value // step * step)
            problems.append(f"{name} {value} is not a multiple of {step} (nearest: {low}, {low + step})")
    if problems:
        raise UserError("; ".join(problems))
