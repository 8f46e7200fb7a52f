"""Training samples of the inpaint model: videos with masks of conditioning frames."""

from __future__ import annotations

import numpy as np

from opensora.datasets.masks import MaskProcessor
from opensora.datasets.t2v.dataset import T2VDataset
from opensora.datasets.t2v.options import InpaintDataOptions

DEFAULT_TEXT = "The {} showcases a scene with coherent and clear visuals."  # the published weights were trained with it


class InpaintDataset(T2VDataset):
    """Samples of `T2VDataset` with known_mask, float32 (T,): 0 for conditioning frames, 1 for frames to generate."""

    options: InpaintDataOptions

    def __init__(self, options: InpaintDataOptions, tokenizer, quiet: bool = False):
        super().__init__(options, tokenizer, quiet)
        self.masks = MaskProcessor(options.mask.min_clear_ratio, options.mask.max_clear_ratio)

    def frames(self, index: int, rng: np.random.Generator) -> dict:
        sample = super().frames(index, rng)
        frames = sample["pixels"].shape[1]
        mask_type = self.options.mask.draw(frames == 1, rng)
        return {**sample, "known_mask": self.masks(mask_type, frames, rng)}

    def _replacement_text(self, record: dict, rng: np.random.Generator) -> str:
        if rng.random() >= self.options.default_text_ratio:
            return ""
        return DEFAULT_TEXT.format("video" if "num_frames" in record else "image")

    def _replacement_texts(self, record: dict) -> list[str]:
        return ["", DEFAULT_TEXT.format("video" if "num_frames" in record else "image")]
