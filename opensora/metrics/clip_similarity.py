"""How well videos match their texts, by CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Callable

import numpy as np
from mindspore import Tensor

from opensora.checkpoint.files import resolve_path
from opensora.config.options import check_choice
from opensora.metrics.frame_features import frame_features, unit_length
from opensora.metrics.preprocessing import CLIP_PREPROCESSING
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.models.vision.clip import CLIPModel

HESSEL_FACTOR = 2.5
# The definitions of the "CLIP score": cosines of all pairs (n,) and exp(logit_scale) -> the score.
CLIP_SCORES: dict[str, Callable[[np.ndarray, float], float]] = {
    "scaled": lambda cosines, scale: scale * float(cosines.mean()),
    "hessel": lambda cosines, scale: HESSEL_FACTOR * float(np.maximum(cosines, 0).mean()),
    "frame_clamped": lambda cosines, scale: 100 * float(np.maximum(cosines, 0).mean()),
    "mean_clamped": lambda cosines, scale: max(100 * float(cosines.mean()), 0.0),
}


def clip_cosines(
    videos: Sequence[np.ndarray], input_ids: np.ndarray, network: CLIPModel, preprocessing: str = "openai"
) -> list[np.ndarray]:
    """The cosine of the features of each frame and of the video's text.

    Args:
        videos: (N, T, H, W, 3) or a sequence of (T, H, W, 3), uint8.
        input_ids: (N, L) token ids of the texts, from CLIP's tokenizer.
        network: ViT-B/32 in published evaluations.
        preprocessing: "openai", "transformers" or "vbench".

    Returns:
        N times (T,) float32.

    Raises:
        UserError: an unknown preprocessing.
    """
    check_choice("preprocessing", preprocessing, CLIP_PREPROCESSING)
    texts = unit_length(np.concatenate([text_features(ids[None], network) for ids in input_ids]))
    return [unit_length(clip_features(video, network, preprocessing)) @ text for video, text in zip(videos, texts)]


def clipsim(
    videos: Sequence[np.ndarray], input_ids: np.ndarray, network: CLIPModel, preprocessing: str = "openai"
) -> np.ndarray:
    """CLIPSIM of each video: the mean over frames of `clip_cosines`, not clamped (Wu et al. 2021, arXiv:2104.14806)."""
    return np.array([cosines.mean() for cosines in clip_cosines(videos, input_ids, network, preprocessing)])


def clip_score(
    videos: Sequence[np.ndarray],
    input_ids: np.ndarray,
    network: CLIPModel,
    definition: str = "scaled",
    preprocessing: str = "openai",
) -> float:
    """The CLIP score of all frames of videos, in one of its definitions.

    Args:
        definition: "scaled", exp(logit_scale) times the mean cosine, as in the evaluation of Open-Sora-Plan v1.0 to
            v1.2; "hessel", 2.5 max(cos, 0) (Hessel et al. 2021, arXiv:2104.08718, eq. 1); "frame_clamped", the same
            with 100; "mean_clamped", 100 times the mean, clamped afterwards, as in torchmetrics.

    See `clip_cosines` for the other arguments.
    """
    check_choice("definition", definition, CLIP_SCORES)
    cosines = np.concatenate(clip_cosines(videos, input_ids, network, preprocessing))
    return CLIP_SCORES[definition](cosines, logit_factor(network))


def logit_factor(network: CLIPModel) -> float:
    """exp(logit_scale), 100 in the published models."""
    return float(np.exp(network.logit_scale.asnumpy().item()))


def clip_tokenizer(path: str) -> Tokenizer:
    """The tokenizer in the folder of CLIP's weights, or beside their file.

    Raises:
        FileNotFoundError, UserError: none there, or a damaged one.
    """
    found = resolve_path(Path(path))
    return Tokenizer(found if found.is_dir() else found.parent)


def token_ids(text: str, tokenizer: Tokenizer, network: CLIPModel) -> np.ndarray:
    """The ids (1, L) of a text; longer texts are cut."""
    ids, _ = tokenizer([text], network.config.text.max_position_embeddings)
    return ids


def text_features(input_ids: np.ndarray, network: CLIPModel) -> np.ndarray:
    """Features (N, E) of token ids (N, L)."""
    return network.text_features(Tensor(np.asarray(input_ids, np.int32))).asnumpy()


def clip_features(video: np.ndarray, network: CLIPModel, preprocessing: str) -> np.ndarray:
    """Features (T, E) of the frames of a video (T, H, W, 3), uint8."""
    prepare = CLIP_PREPROCESSING[preprocessing]
    size = network.config.vision.image_size
    return frame_features(video, network.image_features, lambda frames: prepare(frames, size))
