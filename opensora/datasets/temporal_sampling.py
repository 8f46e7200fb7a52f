"""Which frames of a video make a clip. Times are frame numbers; nothing here reads a file."""

from __future__ import annotations

from typing import Optional

import numpy as np

from opensora.errors import UserError

MIN_FRAMES = 29  # published models were not trained on shorter videos, unless shorter ones were requested


def sample_indices(num_frames: int, sample_rate: int = 1) -> np.ndarray:
    """`num_frames` frame numbers, evenly spaced over the first num_frames * sample_rate frames."""
    return _evenly_spaced(0, num_frames * sample_rate, num_frames)


def sample_window(available: int, num_frames: int, sample_rate: int, position: float) -> np.ndarray:
    """`num_frames` frame numbers, evenly spaced over a window of num_frames * sample_rate frames.

    Args:
        available: frames of the video. A video shorter than the window is used as a whole; frames may repeat.
        position: in [0, 1); selects the start among all possible ones.
    """
    size = num_frames * sample_rate
    start = int(position * (max(0, available - size) + 1))
    return _evenly_spaced(start, max(start + 1, min(start + size, available)), num_frames)


def last_start(available: int, num_frames: int, frame_interval: int = 1) -> int:
    """The last frame that `temporal_crop` may start at. The published code of Open-Sora excludes one possible start."""
    return max(0, available - num_frames * frame_interval - 1)


def temporal_crop(start: int, available: int, num_frames: int, frame_interval: int = 1) -> np.ndarray:
    """`num_frames` frame numbers, evenly spaced over the num_frames * frame_interval frames from `start` (Open-Sora).

    Raises:
        UserError: fewer than `num_frames` frames remain after `start`.
    """
    end = min(start + num_frames * frame_interval, available)
    if end - start < num_frames:
        raise UserError(f"{end - start} frames remain for a clip of {num_frames}")
    return _evenly_spaced(start, end, num_frames)


def resample(start: int, frames: int, fps: float, train_fps: float) -> np.ndarray:
    """Frame numbers in [start, start + frames) that convert `fps` to `train_fps`; rates within 0.1 count as equal."""
    interval = 1.0 if abs(fps - train_fps) < 0.1 else fps / train_fps
    numbers = np.arange(start, start + frames, interval).astype(int)
    return numbers[numbers < start + frames]  # np.arange may include the end because of rounding


def sample_frames(
    numbers: np.ndarray,
    num_frames: int,
    rng: np.random.Generator,
    speed_factor: float = 1.0,
    ae_stride_t: int = 4,
    sp_size: int = 1,
) -> np.ndarray:
    """At most `num_frames` consecutive frames of `numbers` (see `resample`), of a length the models accept.

    With `speed_factor` > 1, a video longer than num_frames is sped up by that factor, or by less if it has too few
    frames. The start of the clip is uniformly distributed.

    Raises:
        UserError: too few frames.
    """
    max_speed = len(numbers) / num_frames
    if speed_factor > 1 and max_speed > 1:
        kept = max(num_frames, int(len(numbers) / min(speed_factor, max_speed)))
        numbers = numbers[np.linspace(0, len(numbers) - 1, kept, dtype=int)]
    if len(numbers) > num_frames:
        start = rng.integers(len(numbers) - num_frames + 1)
        numbers = numbers[start : start + num_frames]
    length = usable_length(len(numbers), num_frames, ae_stride_t, sp_size)
    if length is None:
        raise UserError(f"{len(numbers)} frames at the training rate are too few")
    return numbers[:length]


def usable_length(frames: int, num_frames: int, ae_stride_t: int = 4, sp_size: int = 1) -> Optional[int]:
    """The largest clip length up to `frames` that the models accept; None if `frames` is too short.

    A length is 1 + a multiple of `ae_stride_t`, its latent frames are divisible by `sp_size`, and it is at least
    min(29, num_frames). Clips of a single frame are never split among processes.
    """
    if num_frames == 1:
        sp_size = 1
    latent_frames = ((frames - 1) // ae_stride_t + 1) // sp_size * sp_size
    length = (latent_frames - 1) * ae_stride_t + 1
    return length if length >= min(MIN_FRAMES, num_frames) else None


def _evenly_spaced(start: int, stop: int, count: int) -> np.ndarray:
    return np.linspace(start, stop - 1, count, dtype=int)
