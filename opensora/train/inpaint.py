"""Training of the inpaint model: image to video, transitions, video continuation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mindspore import Tensor, ops

from opensora.datasets.latents.dataset import InpaintLatentDataset
from opensora.datasets.masks import MaskCompressor, condition_pixels
from opensora.datasets.t2v.inpaint import InpaintDataset
from opensora.models import OpenSoraInpaint_v1_3
from opensora.models.common.distribution import DiagonalGaussian
from opensora.train.inpaint_options import InpaintTrainOptions
from opensora.train.latent_cache import cached_posterior
from opensora.train.t2v import T2VTraining


class InpaintTraining(T2VTraining):
    """`T2VTraining` with conditioning frames: their latents and the mask are concatenated with the noisy latents."""

    options: InpaintTrainOptions
    model_classes = (OpenSoraInpaint_v1_3.__name__,)
    dataset_class = InpaintDataset
    latent_dataset_class = InpaintLatentDataset

    @property
    def cache_settings(self) -> dict[str, Any]:
        return {**super().cache_settings, "--add_noise_to_condition": self.options.add_noise_to_condition}

    def condition(self, batch: Mapping, generators: Sequence[np.random.Generator]) -> Tensor:
        """Latents of the conditioning frames and the compressed mask, (B, C + 4, t, h, w)."""
        masks = batch["known_mask"][:, None, :, None, None]
        known = self.sample(self.known_posterior(batch, masks, generators), generators)
        stride, temporal_stride = self.vae.config.spatial_stride, self.vae.config.temporal_stride
        size = (*masks.shape[:3], known.shape[-2] * stride, known.shape[-1] * stride)
        compressed = MaskCompressor(stride, stride, temporal_stride)(np.broadcast_to(masks, size))
        return ops.cat((known, Tensor(compressed)), 1)

    def known_posterior(
        self, batch: Mapping, masks: np.ndarray, generators: Sequence[np.random.Generator]
    ) -> DiagonalGaussian:
        """The posterior of the conditioning frames, from pixels or from the latent cache."""
        if self.cache is not None:
            return cached_posterior(batch["moments"][:, 2 * self.vae.config.latent_dim :])
        rngs = generators if self.options.add_noise_to_condition else None
        return self.vae.encode(Tensor(condition_pixels(batch["pixels"], masks, rngs)))
