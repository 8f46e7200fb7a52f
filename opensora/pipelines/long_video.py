"""Videos longer than the model makes at once: clip after clip, each beginning with the end of the one before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Optional, Protocol

import numpy as np

from opensora.pipelines.mask_strategy import MaskGroup, place_references
from opensora.pipelines.stdit import ClipSize, STDiTPipeline


@dataclass
class VideoPrompt:
    """What is to be made for one prompt: the text of every clip, and references with their places."""

    texts: Sequence[str]
    references: Sequence[np.ndarray] = ()  # latents (C, t, h, w)
    groups: Sequence[MaskGroup] = ()


class NoiseSource(Protocol):
    """Standard normal numbers of a run."""

    def latents(self, clip: int, shape: tuple) -> np.ndarray:
        """The initial noise of a clip, of `shape` (n, C, T, h, w)."""

    def step(self, clip: int, k: int, shape: tuple) -> np.ndarray:
        """The sampler's k-th noise in a clip."""

    def encoder(self, clip: int, shape: tuple) -> Optional[np.ndarray]:
        """For the latents of a finished clip; None: the autoencoder draws."""


def make_long_video(
    pipeline: STDiTPipeline,
    scenes: Sequence[VideoPrompt],
    size: ClipSize,
    draws: NoiseSource,
    condition_frames: int = 0,
    progress: bool = False,
) -> Iterator[np.ndarray]:
    """Yields the videos of n scenes piece by piece in order of time, float32 (n, 3, t, H, W), about [-1, 1].

    Every clip but the first begins with the last `condition_frames` of the one before, encoded again; they are not
    yielded twice. Of pixels no more than one clip is kept.
    """
    references = [list(scene.references) for scene in scenes]
    groups = [list(scene.groups) for scene in scenes]
    shape = (len(scenes), *pipeline.latent_shape(size.video))
    texts, text, clip = None, None, None
    for number in range(len(scenes[0].texts)):
        if number:
            encoded, clip = pipeline.encode(clip, draws.encoder(number - 1, shape)), None
            for known, wanted, latents in zip(references, groups, encoded):
                known.append(latents)
                wanted.append(MaskGroup(number, len(known) - 1, -condition_frames, 0, condition_frames, 0.0))
        if texts != [scene.texts[number] for scene in scenes]:
            texts = [scene.texts[number] for scene in scenes]
            text = pipeline.embed(texts)
        latents, mask = place_references(draws.latents(number, shape), references, groups, number)
        made = pipeline.sample(text, size, latents, mask, lambda k: draws.step(number, k, shape), progress)
        clip = pipeline.decode(made)
        yield clip[:, :, condition_frames:] if number else clip
