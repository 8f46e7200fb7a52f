"""Fréchet video distance (Unterthiner et al. 2018, arXiv:1812.01717), with the two protocols that are in use."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor

from opensora.config.evaluation import FVD_PROTOCOLS
from opensora.config.options import check_choice
from opensora.errors import UserError
from opensora.metrics import preprocessing
from opensora.metrics.frechet import FeatureStatistics, frechet_distance
from opensora.models.vision.i3d import I3D
from opensora.utils.logs import logger

LEAST_FRAMES = 10
FEW_VIDEOS = 256  # below, FVD depends on the number of videos more than on their quality


def fvd(
    real: Sequence[np.ndarray], generated: Sequence[np.ndarray], network: I3D, protocol: str = "styleganv"
) -> float:
    """The distance of two sets of videos; 0 for equal sets.

    Args:
        real: (N, T, H, W, 3) or a sequence of (T, H, W, 3), uint8, or floats in [0, 1].
        generated: the same; the numbers of videos may differ.
        network: of the protocol: i3d_torchscript.pt for "styleganv", i3d_pretrained_400.pt for "videogpt".
        protocol: "styleganv", the usual one, or "videogpt". Their numbers differ by about 10 %, mostly because of the
            networks; numbers are comparable within one protocol only.

    Raises:
        UserError: another protocol, videos of fewer than 10 frames, or no videos.
    """
    sets = [
        FeatureStatistics.of(fvd_features(video, network, protocol) for video in videos) for videos in (real, generated)
    ]
    warn_if_few(min(statistics.count for statistics in sets))
    return frechet_distance(*sets)


def fvd_features(video: np.ndarray, network: I3D, protocol: str = "styleganv") -> np.ndarray:
    """The features (400,) of a video (T, H, W, 3); see `fvd`."""
    check_choice("the protocol of FVD", protocol, FVD_PROTOCOLS)
    if len(video) < LEAST_FRAMES:
        raise UserError(f"a video of {len(video)} frames; FVD needs {LEAST_FRAMES} frames at least")
    return network(Tensor(prepare(video, protocol)[None])).asnumpy()[0]


def prepare(video: np.ndarray, protocol: str = "styleganv") -> np.ndarray:
    """A video (T, H, W, 3) as the network takes it, (3, T, 224, 224)."""
    if protocol == "videogpt" and video.dtype != np.uint8:
        video = (video * np.float32(255)).astype(np.uint8)
    return preprocessing.i3d(video)


def warn_if_few(videos: int) -> None:
    """Warns that FVD of so few videos says little."""
    if videos < FEW_VIDEOS:
        logger.warning(f"FVD of {videos} videos depends on their number; use {FEW_VIDEOS} or more, better 2048")
