"""The metrics of VBench (Huang et al. 2023, arXiv:2311.17982) that need no networks but CLIP and DINO.

VBench's own numbers: temporal flickering and aesthetic quality are means over videos, the consistencies are means over
all frames of all videos but the first of each, which `mean_over_frames` computes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from mindspore import Tensor

from opensora.errors import UserError
from opensora.metrics import preprocessing
from opensora.metrics.clip_similarity import clip_features
from opensora.metrics.frame_features import frame_features, unit_length
from opensora.models.vision.aesthetic import AestheticHead
from opensora.models.vision.clip import CLIPModel
from opensora.models.vision.dino import DINO


def temporal_flickering(videos: Sequence[np.ndarray]) -> np.ndarray:
    """1 for still videos: (255 - mean absolute difference of consecutive frames) / 255, appendix B of the paper.

    Args:
        videos: (N, T, H, W, 3) or a sequence of (T, H, W, 3), uint8, of two frames or more.

    Returns:
        (N,) float64.
    """
    return np.array([_flickering(video) for video in videos])


def _flickering(video: np.ndarray) -> float:
    _check_frames(video)
    # One pair of frames at a time: a difference of whole videos would take eight times their memory.
    pairs = zip(video, video[1:])
    differences = [np.abs(a.astype(np.int16) - b).mean(dtype=np.float64) for a, b in pairs]
    return (255 - float(np.mean(differences))) / 255


def background_consistency(videos: Sequence[np.ndarray], network: CLIPModel) -> np.ndarray:
    """How alike the frames of each video are to CLIP, ViT-B/32 in VBench; see `consistency`.

    Args:
        videos: (N, T, H, W, 3) or a sequence of (T, H, W, 3), uint8, of two frames or more.

    Returns:
        (N,) float64.
    """
    return np.array([consistency(clip_features(video, network, "vbench")) for video in videos])


def subject_consistency(videos: Sequence[np.ndarray], network: DINO) -> np.ndarray:
    """How alike the frames of each video are to DINO, ViT-B/16 in VBench; see `background_consistency`."""
    return np.array([consistency(dino_features(video, network)) for video in videos])


def dino_features(video: np.ndarray, network: DINO) -> np.ndarray:
    """Features (T, D) of the frames of a video (T, H, W, 3), uint8."""
    return frame_features(video, network, preprocessing.dino_vbench)


def consistency(features: np.ndarray) -> float:
    """The mean over frames i >= 1 of (max(0, cos(f_i, f_i-1)) + max(0, cos(f_i, f_0))) / 2.

    Section 4.1 of the paper has no max(0, .); its program has.

    Args:
        features: (T, D) of the frames of one video.

    Raises:
        UserError: fewer than two frames.
    """
    _check_frames(features)
    features = unit_length(features)
    to_previous = (features[1:] * features[:-1]).sum(-1)
    to_first = features[1:] @ features[0]
    return float((np.maximum(to_previous, 0) + np.maximum(to_first, 0)).mean(dtype=np.float64) / 2)


def mean_over_frames(per_video: Sequence[float], frames: Sequence[int]) -> float:
    """VBench's number from the consistencies of videos and their numbers of frames: a longer video weighs more."""
    return float(np.average(per_video, weights=np.asarray(frames) - 1))


def aesthetic_quality(videos: Sequence[np.ndarray], network: CLIPModel, head: AestheticHead) -> np.ndarray:
    """The mean over frames of LAION's aesthetic score, divided by 10.

    Args:
        videos: (N, T, H, W, 3) or a sequence of (T, H, W, 3), uint8.
        network: ViT-L/14.
        head: on its features.

    Returns:
        (N,) float64.
    """
    return np.array(
        [aesthetic_scores(clip_features(v, network, "vbench"), head).mean(dtype=np.float64) for v in videos]
    )


def aesthetic_scores(features: np.ndarray, head: AestheticHead) -> np.ndarray:
    """The score of each frame, divided by 10, from CLIP's features (T, D)."""
    return head(Tensor(unit_length(features))).asnumpy() / 10


def _check_frames(video: np.ndarray) -> None:
    if len(video) < 2:
        raise UserError("a video of one frame; this metric compares the frames of a video")
