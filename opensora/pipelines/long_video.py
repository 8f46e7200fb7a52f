"""Videos longer than one clip of the model: consecutive clips, each conditioned on the end of the previous one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Optional, Protocol

import numpy as np

from opensora.pipelines.mask_strategy import MaskGroup, place_references
from opensora.pipelines.stdit import ClipSize, STDiTPipeline


@dataclass
class VideoPrompt:
    """One video to generate: the text of every clip, the references, and the mask groups that place them."""

    texts: Sequence[str]
    references: Sequence[np.ndarray] = ()  # latents (C, t, h, w)
    groups: Sequence[MaskGroup] = ()


class NoiseSource(Protocol):
    """Standard normal noise for all clips."""

    def latents(self, clip: int, shape: tuple) -> np.ndarray:
        """The initial noise of a clip, of `shape` (n, C, T, h, w)."""

    def step(self, clip: int, k: int, shape: tuple) -> np.ndarray:
        """The noise of the sampler's k-th draw in a clip."""

    def encoder(self, clip: int, shape: tuple) -> Optional[np.ndarray]:
        """The noise for encoding a finished clip; None: sampled by the autoencoder."""


def make_long_video(
    pipeline: STDiTPipeline,
    prompts: Sequence[VideoPrompt],
    size: ClipSize,
    noise: NoiseSource,
    condition_frames: int = 0,
    progress: bool = False,
) -> Iterator[np.ndarray]:
    """Yields the videos of n prompts clip by clip, float32 (n, 3, t, H, W), about [-1, 1].

    Every clip after the first is conditioned on the last `condition_frames` of the previous one, encoded again; these
    frames are not yielded twice. At most one clip of pixels is in memory.
    """
    references = [list(prompt.references) for prompt in prompts]
    groups = [list(prompt.groups) for prompt in prompts]
    shape = (len(prompts), *pipeline.latent_shape(size.video))
    texts: list[str] = []
    clip: Optional[np.ndarray] = None
    for number in range(len(prompts[0].texts)):
        if clip is not None:
            encoded = pipeline.encode(clip, noise.encoder(number - 1, shape))
            clip = None  # frees its memory before the next clip is decoded
            for video_references, video_groups, latents in zip(references, groups, encoded):
                video_references.append(latents)
                last_frames = MaskGroup(number, len(video_references) - 1, -condition_frames, 0, condition_frames, 0.0)
                video_groups.append(last_frames)
        if texts != [prompt.texts[number] for prompt in prompts]:
            texts = [prompt.texts[number] for prompt in prompts]
            embedding = pipeline.embed(texts)
        latents, mask = place_references(noise.latents(number, shape), references, groups, number)
        sampled = pipeline.sample(embedding, size, latents, mask, lambda k: noise.step(number, k, shape), progress)
        clip = pipeline.decode(sampled)
        yield clip[:, :, condition_frames:] if number else clip
