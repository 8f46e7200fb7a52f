"""Training of the inpaint model: image to video, transitions, video continuation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from mindspore import Tensor, ops

from opensora.datasets.masks import MaskCompressor, add_noise_to_condition, mask_pixels
from opensora.datasets.t2v.inpaint import InpaintDataset
from opensora.models import OpenSoraInpaint_v1_3
from opensora.train.inpaint_options import InpaintTrainOptions
from opensora.train.t2v import T2VTraining


class InpaintTraining(T2VTraining):
    """`T2VTraining` with conditioning frames: their latents and the mask are concatenated with the noisy latents."""

    options: InpaintTrainOptions
    model_class = OpenSoraInpaint_v1_3
    dataset_class = InpaintDataset

    def init_from(self, source: str, config: Mapping) -> OpenSoraInpaint_v1_3:
        return OpenSoraInpaint_v1_3.init_from(source, self.device.dtype, config)

    def condition(self, batch: Mapping, generators: Sequence[np.random.Generator]) -> Tensor:
        """Latents of the conditioning frames and the compressed mask, (B, C + 4, t, h, w)."""
        b, _, t, h, w = batch["pixels"].shape
        masks = batch["known_mask"].reshape(b, 1, t, 1, 1)
        known = mask_pixels(batch["pixels"], masks)
        if self.options.add_noise_to_condition:
            known = np.concatenate(
                [
                    add_noise_to_condition(known[i : i + 1], masks[i : i + 1], generator)
                    for i, generator in enumerate(generators)
                ]
            )
        strides = self.vae.config.spatial_stride, self.vae.config.spatial_stride, self.vae.config.temporal_stride
        compressed = MaskCompressor(*strides)(np.broadcast_to(masks, (b, 1, t, h, w)))
        return ops.cat((self.encode(known, generators), Tensor(compressed)), 1)
