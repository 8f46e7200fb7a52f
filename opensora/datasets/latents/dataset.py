"""Training samples of a latent cache, in place of those of `T2VDataset` and `InpaintDataset`."""

from __future__ import annotations

import numpy as np

from opensora.datasets.collate import PadAndStack
from opensora.datasets.latents.cache import LatentCache
from opensora.datasets.t2v.dataset import T2VDataset, draw_caption
from opensora.datasets.t2v.inpaint import InpaintDataset
from opensora.datasets.t2v.options import T2VDataOptions
from opensora.errors import UserError


class LatentDataset(T2VDataset):
    """The samples of `T2VDataset`, with the same random captions, from a latent cache.

    An item has, instead of pixels, `moments` float32 (2 D, t, h, w), mean and log-variance of D latent channels, and
    `cond` float32 (1, model_max_length, width) with `cond_mask`. One of the crops of the cache is drawn each time.

    Args:
        options: those that the cache was made with.
        cache: the cache of the data.
        quiet: do not print the table of excluded samples; for all ranks but one.

    Raises:
        UserError: the cache was made from other samples, or no sample is usable.
    """

    def __init__(self, options: T2VDataOptions, cache: LatentCache, quiet: bool = False):
        self.cache = cache
        super().__init__(options, None, quiet)

    def collate(self, batch_size: int) -> PadAndStack:
        return super().collate(batch_size).for_latents("moments")

    def frames(self, index: int, rng: np.random.Generator) -> dict:
        """The part of a sample that the autoencoder has encoded."""
        return self.cache.crop(index, int(rng.integers(self.cache.crops)))

    @property
    def knows_chinese(self) -> bool:
        return self.cache.manifest.text_encoder["knows_chinese"]

    def _text(self, record: dict, rng: np.random.Generator) -> dict:
        caption, _ = draw_caption(record, rng)
        if self.options.text_embed_cache:
            text = caption if self._keeps_text(rng) else ""
        else:
            text = self._final_text(record, caption, rng)
        states = self.cache.text(text)
        padding = self.options.model_max_length - len(states)
        mask = np.arange(self.options.model_max_length) < len(states)
        return {"cond": np.pad(states, ((0, padding), (0, 0)))[None], "cond_mask": mask.astype(np.int32)[None]}

    def _check_texts(self) -> list[str]:
        if self.cache.manifest.samples != self.index.digest():
            raise UserError(
                f"--{self.options.form} {self.options.file}: {self.cache.folder} was made from other samples, captions "
                f"or folders, or with another --sp_size; run opensora encode again, which encodes what is new"
            )
        return []


class InpaintLatentDataset(LatentDataset, InpaintDataset):
    """The samples of `InpaintDataset` from a latent cache.

    `moments` is (4 D, t, h, w): those of the video, and those of its conditioning frames. `known_mask` belongs to the
    crop and is not drawn anew.
    """
