"""Haar wavelet transforms of videos (B, T, C, H, W) float32 in two and three dimensions, and their inverses.

A transform splits the video into blocks of two along each axis, moves the elements of a block to one axis and
multiplies that axis by a Hadamard matrix. The matrix is symmetric, so the inverse uses the same one. The 3-D scale is
0.3536 instead of 1 / sqrt(8), as in the published filters.

The 3-D transforms are causal: a clip's first frame forms a block with a copy of itself; 1 + 2n frames become 1 + n.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor, nn, ops

from opensora.ops.layout import concat, permute, slice_axis

HADAMARD_2 = np.array([[1, 1], [1, -1]], dtype=np.float32)
HADAMARD_4 = np.kron(HADAMARD_2, HADAMARD_2) / 2
HADAMARD_8 = np.kron(HADAMARD_2, np.kron(HADAMARD_2, HADAMARD_2)) * np.float32(0.3536)

# The matrices as filters under their published names: PyTorch checkpoints store them, here they are constants.
FILTERS_3D = {
    name: row.reshape(1, 1, 2, 2, 2)
    for name, row in zip(("h", "g", "hh", "gh", "h_v", "g_v", "hh_v", "gh_v"), HADAMARD_8)
}
# Rows and columns of HADAMARD_4 run along W, then H; a filter is (H, W).
FILTERS_2D = {
    name: np.ascontiguousarray(row.reshape(2, 2).T).reshape(1, 1, 2, 2)
    for name, row in zip(("aa", "ad", "da", "dd"), HADAMARD_4)
}


class HaarTransform2D(nn.Cell):
    """(B, T, C, H, W) -> (B, T, 4C, H/2, W/2); sub-bands by (differs along W, differs along H)."""

    filters = FILTERS_2D

    def __init__(self):
        super().__init__()
        self.matrix = Tensor(HADAMARD_4)

    def construct(self, x: Tensor, first: bool = True) -> Tensor:
        b, t, c, h, w = x.shape
        x = permute(x.reshape(b, t, c, h // 2, 2, w // 2, 2), (0, 1, 6, 4, 2, 3, 5))  # B T 2w 2h C H/2 W/2
        x = ops.matmul(self.matrix, x.reshape(b * t, 4, -1))
        return x.reshape(b, t, 4 * c, h // 2, w // 2)


class InverseHaarTransform2D(nn.Cell):
    """(B, T, 4C, H, W) -> (B, T, C, 2H, 2W)."""

    filters = FILTERS_2D

    def __init__(self):
        super().__init__()
        self.matrix = Tensor(HADAMARD_4)

    def construct(self, x: Tensor, first: bool = True) -> Tensor:
        b, t, c, h, w = x.shape
        x = ops.matmul(self.matrix, x.reshape(b * t, 4, -1))
        x = permute(x.reshape(b, t, 2, 2, c // 4, h, w), (0, 1, 4, 5, 3, 6, 2))  # B T C H 2h W 2w
        return x.reshape(b, t, c // 4, 2 * h, 2 * w)


class HaarTransform3D(nn.Cell):
    """(B, T, C, H, W) -> (B, ceil(T/2), 8C, H/2, W/2); sub-bands by (differs along T, along H, along W).

    `first`: x starts with the clip's first frame, so T is odd; later chunks of a stream have an even T.
    """

    filters = {f"{name}_conv.conv.weight": value for name, value in FILTERS_3D.items()}

    def __init__(self):
        super().__init__()
        self.matrix = Tensor(HADAMARD_8)

    def construct(self, x: Tensor, first: bool = True) -> Tensor:
        if first:
            x = concat(slice_axis(x, 1, 0, 1), x, 1)
        b, t, c, h, w = x.shape
        x = x.reshape(b, t // 2, 2, c, h // 2, 2, w // 2, 2)
        x = permute(x, (0, 1, 2, 5, 7, 3, 4, 6))  # B T/2 2t 2h 2w C H/2 W/2
        x = ops.matmul(self.matrix, x.reshape(b * t // 2, 8, -1))
        return x.reshape(b, t // 2, 8 * c, h // 2, w // 2)


class InverseHaarTransform3D(nn.Cell):
    """(B, T, 8C, H, W) -> (B, 2T, C, 2H, 2W), without the first frame's copy if `first`."""

    filters = FILTERS_3D

    def __init__(self):
        super().__init__()
        self.matrix = Tensor(HADAMARD_8)

    def construct(self, x: Tensor, first: bool = True) -> Tensor:
        b, t, c, h, w = x.shape
        x = ops.matmul(self.matrix, x.reshape(b * t, 8, -1))
        x = permute(x.reshape(b, t, 2, 2, 2, c // 8, h, w), (0, 1, 2, 5, 6, 3, 7, 4))  # B T 2t C H 2h W 2w
        x = x.reshape(b, 2 * t, c // 8, 2 * h, 2 * w)
        return slice_axis(x, 1, 1, 2 * t) if first else x
