"""How much videos move. This is a measure of this project, not one of VBench."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from opensora.datasets import transforms
from opensora.errors import UserError

SIDE = 256  # shorter side in pixels at which motion is estimated


def motion_amount(videos: Sequence[np.ndarray]) -> np.ndarray:
    """The mean length of the optical flow between consecutive frames, in percent of the shorter side.

    Dense inverse search (Kroeger et al. 2016, arXiv:1603.03590) of OpenCV, at a shorter side of 256 pixels.

    Args:
        videos: (N, T, H, W, 3) or a sequence of (T, H, W, 3), uint8, of two frames or more.

    Returns:
        (N,) float64.

    Raises:
        UserError: a video of one frame.
    """
    return np.array([_motion(video) for video in videos])


def _motion(video: np.ndarray) -> float:
    if len(video) < 2:
        raise UserError("a video of one frame does not move; motion needs two frames")
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    height, width = transforms.short_side(video.shape[1], video.shape[2], SIDE)
    previous, lengths = None, []
    for frame in video:
        gray = cv2.resize(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), (width, height), interpolation=cv2.INTER_AREA)
        if previous is not None:
            motion = flow.calc(previous, gray, None)  # type: ignore[call-overload]
            lengths.append(np.linalg.norm(motion, axis=-1).mean())
        previous = gray
    return float(np.mean(lengths)) / SIDE * 100
