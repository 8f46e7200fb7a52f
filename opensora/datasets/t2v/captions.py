"""Adds sentences about the aesthetic quality to captions."""

from __future__ import annotations

import math
from typing import Optional

import numpy as np

LOW_SCORE, HIGH_SCORE = 4.25, 5.75  # a sentence is added for aesthetic scores <= LOW_SCORE or >= HIGH_SCORE

# One of the ten sentences is drawn at random; {kind} is "video" or "image".
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


def add_quality_sentence(text: str, score: Optional[float], is_video: bool, rng: np.random.Generator) -> str:
    """Adds a sentence about the sample's aesthetic score before or after `text`, if the score is low or high.

    The models learn quality from these sentences, and prompts request it with them. A score that is None, NaN or
    infinite is ignored.
    """
    sentences = _quality_sentences(score, is_video)
    if not sentences:
        return text
    sentence = sentences[rng.integers(len(sentences))]
    return f"{text} {sentence}" if rng.random() < 0.5 else f"{sentence} {text}"


def all_with_quality_sentence(text: str, score: Optional[float], is_video: bool) -> list[str]:
    """The possible results of `add_quality_sentence`: twenty texts, or `text` alone if no sentence is added."""
    sentences = _quality_sentences(score, is_video)
    return [f"{text} {one}" for one in sentences] + [f"{one} {text}" for one in sentences] or [text]


def _quality_sentences(score: Optional[float], is_video: bool) -> list[str]:
    if score is None or not math.isfinite(score) or LOW_SCORE < score < HIGH_SCORE:
        return []
    sentences = LOW_QUALITY if score <= LOW_SCORE else HIGH_QUALITY
    return [sentence.format(kind="video" if is_video else "image") for sentence in sentences]
