"""Sinusoidal embedding of the timestep and of other scalars."""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from opensora.ops.rope import inverse_frequencies

TIMESTEP_CHANNELS = 256


class SinusoidalEmbedding(nn.Cell):
    """Cosines, then sines, of scalars (Ho et al. 2020, arXiv:2006.11239, appendix B). (B,) -> (B, 256) float32."""

    def __init__(self):
        super().__init__()
        self.frequencies = Tensor(inverse_frequencies(TIMESTEP_CHANNELS).astype(np.float32))

    def construct(self, values: Tensor) -> Tensor:
        angles = values.astype(ms.float32).reshape(-1, 1) * self.frequencies
        return ops.cat((ops.cos(angles), ops.sin(angles)), 1)
