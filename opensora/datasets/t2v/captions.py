"""The text of a training sample: which caption, what is said about its quality, and when it is left out."""

from __future__ import annotations

import math
from typing import Optional

import numpy as np

LOW_SCORE, HIGH_SCORE = 4.25, 5.75  # aesthetic scores up to and from which a sentence is added

# Ten sentences each, one of which is drawn; {kind} is "video" or "image".
LOW_QUALITY = (
    "The {kind} is of low aesthetic quality.",
    "There is little beauty in this {kind}.",
    "This {kind} is given a low score for its looks.",
    "This {kind} is aesthetically below average.",
    "As for beauty, this {kind} ranks low.",
    "The {kind} lacks artistic quality.",
    "The aesthetic score of this {kind} is low.",
    "This {kind} has little visual appeal.",
    "Viewers rate the beauty of this {kind} as low.",
    "In its aesthetics this {kind} is poor.",
)
HIGH_QUALITY = (
    "The {kind} is of high aesthetic quality.",
    "This {kind} is exceptionally beautiful.",
    "This {kind} is given a high score for its looks.",
    "Its colors are in harmony and its composition is balanced.",
    "This {kind} is aesthetically far above average.",
    "The {kind} has excellent artistic quality.",
    "As for beauty, this {kind} ranks high.",
    "The aesthetics of this {kind} are impressive.",
    "The aesthetic score of this {kind} is among the highest.",
    "This {kind} has outstanding visual appeal.",
)


def say_quality(text: str, score: Optional[float], is_video: bool, rng: np.random.Generator) -> str:
    """`text` with a sentence about its sample's aesthetic score before or after it, if the score is low or high.

    A score of None, NaN or infinity says nothing. The models learn to tell good from bad by these sentences, which
    prompts then ask for.
    """
    if score is None or not math.isfinite(score) or LOW_SCORE < score < HIGH_SCORE:
        return text
    sentences = LOW_QUALITY if score <= LOW_SCORE else HIGH_QUALITY
    sentence = sentences[rng.integers(len(sentences))].format(kind="video" if is_video else "image")
    return f"{text} {sentence}" if rng.random() < 0.5 else f"{sentence} {text}"
