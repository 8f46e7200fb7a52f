"""Sinusoidal embeddings of the timestep, of other scalars and of positions."""

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


def position_embedding_1d(positions: np.ndarray, dim: int) -> np.ndarray:
    """Sines, then cosines, of positions (n,): (n, dim) float32."""
    angles = np.outer(positions, inverse_frequencies(dim))
    return np.concatenate((np.sin(angles), np.cos(angles)), 1).astype(np.float32)


def position_embedding_2d(rows: np.ndarray, columns: np.ndarray, dim: int) -> np.ndarray:
    """Embeddings of a grid's positions, row-major: half of the channels for the column, then half for the row.

    rows (h,), columns (w,) -> (h w, dim) float32.
    """
    of_column, of_row = position_embedding_1d(columns, dim // 2), position_embedding_1d(rows, dim // 2)
    return np.concatenate((np.tile(of_column, (len(rows), 1)), np.repeat(of_row, len(columns), 0)), 1)
