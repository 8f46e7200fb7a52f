"""Haar wavelet transforms of videos (B, C, T, H, W) in two and three dimensions, and their inverses.

A transform cuts the video into blocks of two along each axis, gathers the elements of a block on one axis and
multiplies that axis by a Hadamard matrix. The matrix is symmetric, so the inverse uses it again. The 3-D scale is
0.3536, not 1 / sqrt(8), as in the published filters.

In time, a clip's first frame forms a block with a copy of itself ("causal"): 1 + 2n frames become 1 + n.
"""
from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops

HADAMARD_2 = np.array([[1, 1], [1, -1]], dtype=np.float32)
HADAMARD_4 = np.kron(HADAMARD_2, HADAMARD_2) / 2
HADAMARD_8 = np.kron(HADAMARD_2, np.kron(HADAMARD_2, HADAMARD_2)) * np.float32(0.3536)

# The same as filters under their published names. PyTorch checkpoints hold them; here they are constants.
FILTERS_3D = {name: row.reshape(1, 1, 2, 2, 2)
              for name, row in zip(("h", "g", "hh", "gh", "h_v", "g_v", "hh_v", "gh_v"), HADAMARD_8)}
# Rows and columns of HADAMARD_4 run along W, then H; a filter is (H, W).
FILTERS_2D = {name: np.ascontiguousarray(row.reshape(2, 2).T).reshape(1, 1, 2, 2)
              for name, row in zip(("aa", "ad", "da", "dd"), HADAMARD_4)}


class HaarTransform2D(nn.Cell):
    """(B, C, T, H, W) -> (B, 4C, T, H/2, W/2); sub-bands by (differs along W, differs along H)."""

    filters = FILTERS_2D

    def __init__(self):
        super().__init__()
        self.matrix = Tensor(HADAMARD_4)

    def construct(self, x: Tensor, first: bool = True) -> Tensor:
        b, c, t, h, w = x.shape
        x = x.reshape(b, c, t, h // 2, 2, w // 2, 2).transpose(0, 6, 4, 1, 2, 3, 5)
        x = ops.matmul(self.matrix.astype(x.dtype), x.reshape(b, 4, -1))
        return x.reshape(b, 4 * c, t, h // 2, w // 2)


class InverseHaarTransform2D(nn.Cell):
    """(B, 4C, T, H, W) -> (B, C, T, 2H, 2W)."""

    filters = FILTERS_2D

    def __init__(self):
        super().__init__()
        self.matrix = Tensor(HADAMARD_4)

    def construct(self, x: Tensor, first: bool = True) -> Tensor:
        b, c, t, h, w = x.shape
        x = ops.matmul(self.matrix.astype(x.dtype), x.reshape(b, 4, -1))
        x = x.reshape(b, 2, 2, c // 4, t, h, w).transpose(0, 3, 4, 5, 2, 6, 1)
        return x.reshape(b, c // 4, t, 2 * h, 2 * w)


class HaarTransform3D(nn.Cell):
    """(B, C, T, H, W) -> (B, 8C, ceil(T/2), H/2, W/2); sub-bands by (differs along T, along H, along W).

    `first`: x begins with the clip's first frame, so T is odd; later chunks of a stream have an even T.
    """

    filters = {f"{name}_conv.conv.weight": value for name, value in FILTERS_3D.items()}

    def __init__(self):
        super().__init__()
        self.matrix = Tensor(HADAMARD_8)

    def construct(self, x: Tensor, first: bool = True) -> Tensor:
        if first:
            x = ops.cat((x[:, :, :1], x), 2)
        b, c, t, h, w = x.shape
        x = x.reshape(b, c, t // 2, 2, h // 2, 2, w // 2, 2).transpose(0, 3, 5, 7, 1, 2, 4, 6)
        x = ops.matmul(self.matrix.astype(x.dtype), x.reshape(b, 8, -1))
        return x.reshape(b, 8 * c, t // 2, h // 2, w // 2)


class InverseHaarTransform3D(nn.Cell):
    """(B, 8C, T, H, W) -> (B, C, 2T, 2H, 2W), without the first frame's copy if `first`."""

    filters = FILTERS_3D

    def __init__(self):
        super().__init__()
        self.matrix = Tensor(HADAMARD_8)

    def construct(self, x: Tensor, first: bool = True) -> Tensor:
        b, c, t, h, w = x.shape
        x = ops.matmul(self.matrix.astype(x.dtype), x.reshape(b, 8, -1))
        x = x.reshape(b, 2, 2, 2, c // 8, t, h, w).transpose(0, 4, 5, 1, 6, 2, 7, 3)
        x = x.reshape(b, c // 8, 2 * t, 2 * h, 2 * w)
        return x[:, :, 1:] if first else x
