"""The posterior that an autoencoder's encoder predicts."""

from __future__ import annotations

from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from opensora.ops.layout import split


class DiagonalGaussian:
    """An independent N(mean, exp(logvar)) for every element.

    `moments` (B, 2C, ...) holds mean and logvar along axis 1; logvar is clamped to [-30, 20]. Mean, logvar and samples
    are float32.
    """

    def __init__(self, moments: Tensor):
        self.mean, logvar = split(moments.astype(ms.float32), 1, moments.shape[1] // 2)
        self.logvar = ops.clamp(logvar, -30.0, 20.0)

    @property
    def std(self) -> Tensor:
        return ops.exp(0.5 * self.logvar)

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, noise: Optional[Tensor] = None) -> Tensor:
        """A sample of the mean's shape; standard normal `noise` of that shape, by default from numpy's generator."""
        if noise is None:
            noise = Tensor(np.random.standard_normal(self.mean.shape).astype(np.float32))
        return self.mean + self.std * noise

    def kl(self) -> Tensor:
        """KL divergence from N(0, 1), summed over all but the batch: (B,) (Kingma & Welling 2014, appendix B)."""
        terms = self.mean**2 + ops.exp(self.logvar) - 1.0 - self.logvar
        return 0.5 * terms.reshape(terms.shape[0], -1).sum(1)
