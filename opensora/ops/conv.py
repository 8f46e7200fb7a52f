"""Convolutions of videos laid out frame after frame, (B, T, C, H, W).

A CPU has a kernel of this project's own. Elsewhere frames go through 2-D convolutions as a batch, for a frame's channels
lie together; a 3-D convolution is the sum of one 2-D convolution for each frame of its filter. On a CPU that is faster
than the operator Conv3D and needs a fraction of its memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import mindspore as ms
from mindspore import Tensor, ops

from opensora.ops.cpu import kernels


def conv2d(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, padding: Sequence[int] = (0, 0, 0, 0)) -> Tensor:
    """Every frame by itself: x (B, T, C, H, W), weight (O, C, k, k); zeros as (top, bottom, left, right)."""
    if kernels.multiplies(x.dtype) and kernels.convolves(weight, stride):
        frames = x if stride == 1 else x.reshape((-1, 1) + x.shape[2:])  # its steps are in time, too
        weight = weight.reshape(weight.shape[:2] + (1,) + weight.shape[2:])
        y = kernels.convolve(frames, weight, bias, stride, tuple(padding))
        return y.reshape(x.shape[:2] + y.shape[2:])
    y = _convolve(x.reshape((-1,) + x.shape[2:]), weight, stride, padding)
    return _unfold(ops.bias_add(y, bias), x.shape[1])


def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int = 1,
    padding: Sequence[int] = (0, 0, 0, 0),
    past: Optional[Tensor] = None,
    copies: int = 0,
) -> Tensor:
    """x (B, T, C, H, W), weight (O, C, k, k', k'); `stride` in time and space; no padding in time.

    Before x stand the P frames of `past` (B, P, C, H, W), or P `copies` of its first frame. T becomes
    (P + T - k) // stride + 1.
    """
    if kernels.multiplies(x.dtype) and kernels.convolves(weight, stride):
        return kernels.convolve(x, weight, bias, stride, tuple(padding), past, copies)
    if copies:
        past = ops.tile(x[:, :1], (1, copies, 1, 1, 1))
    if past is not None:
        x = ops.cat((past, x), 1)
    frames = (x.shape[1] - weight.shape[2]) // stride + 1
    y = None
    for k, tap in enumerate(_taps(weight)):
        part = _convolve(_every(x, k, frames, stride).reshape((-1,) + x.shape[2:]), tap, stride, padding)
        y = part if y is None else y + part
    return _unfold(ops.bias_add(y, bias), frames)


def _taps(weight: Tensor) -> list[Tensor]:
    """(O, C, k, k', k') -> k times (O, C, k', k')."""
    if weight.shape[2] == 1:
        return [weight.reshape(weight.shape[:2] + weight.shape[3:])]
    return [weight[:, :, k] for k in range(weight.shape[2])]


def _every(x: Tensor, first: int, count: int, stride: int) -> Tensor:
    """`count` frames of x, from `first` on in steps of `stride`."""
    if stride == 1:
        return x[:, first : first + count]
    # On a CPU the gradient of a slice with steps writes out of bounds where there is more than one row.
    return ops.gather(x, Tensor(tuple(range(first, first + stride * count, stride)), ms.int32), 1)


def _convolve(x: Tensor, weight: Tensor, stride: int, padding: Sequence[int]) -> Tensor:
    """(B T, C, H, W) -> (B T, O, H', W')."""
    return ops.Conv2D(weight.shape[0], weight.shape[2:], pad_mode="pad", pad=tuple(padding), stride=stride)(x, weight)


def _unfold(x: Tensor, frames: int) -> Tensor:
    """(B T, O, H, W) -> (B, T, O, H, W)."""
    return x.reshape((-1, frames) + x.shape[1:])
