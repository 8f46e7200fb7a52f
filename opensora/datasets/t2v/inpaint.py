"""Training samples of the inpaint model: videos with masks of conditioning frames."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from opensora.datasets.masks import MaskConfig, MaskProcessor
from opensora.datasets.t2v.dataset import T2VDataset
from opensora.datasets.t2v.options import T2VDataOptions
from opensora.errors import UserError

DEFAULT_TEXT = "The {} showcases a scene with coherent and clear visuals."  # the published weights were trained with it


@dataclass(frozen=True)
class InpaintDataOptions(T2VDataOptions):
    """Raises UserError for an invalid ratio, or one that is impossible with cached embeddings."""

    mask: MaskConfig = field(default_factory=MaskConfig)
    default_text_ratio: float = 0.5  # of the captions that are left out, how many `DEFAULT_TEXT` stands for

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.default_text_ratio <= 1:
            raise UserError(f"default_text_ratio {self.default_text_ratio}: a probability should be between 0 and 1")
        if self.default_text_ratio and self.text_embed_cache:
            raise UserError(
                f"default_text_ratio {self.default_text_ratio} needs a text encoder; with text_embed_cache it must be 0"
            )


class InpaintDataset(T2VDataset):
    """Samples of `T2VDataset` with known_mask, float32 (T,): 0 for conditioning frames, 1 for frames to generate."""

    options: InpaintDataOptions

    def __init__(self, options: InpaintDataOptions, tokenizer, quiet: bool = False):
        super().__init__(options, tokenizer, quiet)
        self.masks = MaskProcessor(options.mask.min_clear_ratio, options.mask.max_clear_ratio)

    def _read(self, index: int, rng: np.random.Generator) -> dict:
        sample = super()._read(index, rng)
        frames = sample["pixels"].shape[1]
        mask_type = self.options.mask.draw(frames == 1, rng)
        return {**sample, "known_mask": self.masks(mask_type, frames, rng)}

    def _replacement_text(self, record: dict, rng: np.random.Generator) -> str:
        if rng.random() >= self.options.default_text_ratio:
            return ""
        return DEFAULT_TEXT.format("video" if "num_frames" in record else "image")
