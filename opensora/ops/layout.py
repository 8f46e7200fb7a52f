"""Order of axes."""
from __future__ import annotations

from mindspore import Tensor

from opensora.ops.cpu import kernels


def permute(x: Tensor, axes: tuple) -> Tensor:
    """x with its axes in another order, copied.

    In PyNative mode MindSpore rearranges by views, which the next operator has to have copied; on a CPU that takes
    some twenty times as long as the kernel.
    """
    if kernels.available(x.dtype):
        return kernels.permute(x, axes)
    return x.transpose(axes)


def swap_frames_channels(x: Tensor) -> Tensor:
    """(B, C, T, H, W) <-> (B, T, C, H, W)."""
    return permute(x, (0, 2, 1, 3, 4))
