"""Which frames of a video make a training sample. Times are frame numbers; nothing here touches a file."""

from __future__ import annotations

from typing import Optional

import numpy as np

from opensora.errors import UserError

SHORTEST = 29  # frames; published models were not trained on shorter videos, unless all are shorter


def sample_indices(num_frames: int, sample_rate: int = 1) -> np.ndarray:
    """`num_frames` frame numbers spread evenly over the first num_frames * sample_rate frames."""
    return np.linspace(0, num_frames * sample_rate - 1, num_frames, dtype=int)


def usable_length(frames: int, num_frames: int, ae_stride_t: int = 4, sp_size: int = 1) -> Optional[int]:
    """The longest beginning of `frames` frames that the models take, or None where there is none.

    1 + a multiple of `ae_stride_t` frames, whose latent frames split among `sp_size` processes, and no fewer than
    29, or `num_frames` if that is less. Samples of a single frame are never split.
    """
    if num_frames == 1:
        sp_size = 1
    latent_frames = ((frames - 1) // ae_stride_t + 1) // sp_size * sp_size
    length = (latent_frames - 1) * ae_stride_t + 1
    return length if length >= min(SHORTEST, num_frames) else None


def resampled(start: int, frames: int, fps: float, train_fps: float) -> np.ndarray:
    """The frames of start .. start + frames that a video at `train_fps` shows; rates within 0.1 count as equal."""
    interval = 1.0 if abs(fps - train_fps) < 0.1 else fps / train_fps
    numbers = np.arange(start, start + frames, interval).astype(int)
    return numbers[numbers < start + frames]  # the last one may be rounded up


def sample_frames(
    numbers: np.ndarray,
    num_frames: int,
    rng: np.random.Generator,
    speed_factor: float = 1.0,
    ae_stride_t: int = 4,
    sp_size: int = 1,
) -> np.ndarray:
    """At most `num_frames` of the resampled frames `numbers`, in a form the models take.

    With `speed_factor` > 1 a video with frames to spare runs faster, by that factor or as far as its frames last. Of
    what is too long a window is drawn; every start is as likely.

    Raises:
        UserError: fewer frames than the models take.
    """
    spare = len(numbers) / num_frames
    if speed_factor > 1 and spare > 1:
        kept = max(num_frames, int(len(numbers) / min(speed_factor, spare)))
        numbers = numbers[np.linspace(0, len(numbers) - 1, kept, dtype=int)]
    if len(numbers) > num_frames:
        begin = rng.integers(len(numbers) - num_frames + 1)
        numbers = numbers[begin : begin + num_frames]
    length = usable_length(len(numbers), num_frames, ae_stride_t, sp_size)
    if length is None:
        raise UserError(f"{len(numbers)} frames at the training rate are too few")
    return numbers[:length]
