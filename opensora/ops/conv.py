"""Convolutions of videos laid out frame after frame, (B, T, C, H, W).

A frame's channels lie together, so frames go through 2-D convolutions as a batch, and a 3-D convolution is the sum of
one 2-D convolution for each of its kernel's frames. On a CPU this is faster than the operator Conv3D and needs a
fraction of its memory.
"""
from __future__ import annotations

from typing import Sequence

import mindspore as ms
from mindspore import Tensor, ops


def conv2d(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, padding: Sequence[int] = (0, 0, 0, 0)) -> Tensor:
    """Every frame by itself: x (B, T, C, H, W), weight (O, C, k, k); zeros as (top, bottom, left, right)."""
    return _unfold(ops.bias_add(_frames(x, weight, stride, padding), bias), x.shape[1])


def conv3d(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, padding: Sequence[int] = (0, 0, 0, 0)) -> Tensor:
    """x (B, T, C, H, W), weight (O, C, k, k', k'); `stride` in time and space; no padding in time.

    T becomes (T - k) // stride + 1.
    """
    kernel_frames = weight.shape[2]
    frames = (x.shape[1] - kernel_frames) // stride + 1
    y = None
    for k in range(kernel_frames):
        tap = _frames(_every(x, k, frames, stride), weight[:, :, k], stride, padding)
        y = tap if y is None else y + tap
    return _unfold(ops.bias_add(y, bias), frames)


def _every(x: Tensor, first: int, count: int, stride: int) -> Tensor:
    """`count` frames of x, from `first` on in steps of `stride`."""
    if stride == 1:
        return x[:, first:first + count]
    # On a CPU the gradient of a slice with steps writes out of bounds where there is more than one row.
    return ops.gather(x, Tensor(tuple(range(first, first + stride * count, stride)), ms.int32), 1)


def _frames(x: Tensor, weight: Tensor, stride: int, padding: Sequence[int]) -> Tensor:
    """(B, T, C, H, W) -> (B T, O, H', W')."""
    convolution = ops.Conv2D(weight.shape[0], weight.shape[2:], pad_mode="pad", pad=tuple(padding), stride=stride)
    return convolution(x.reshape((-1,) + x.shape[2:]), weight)


def _unfold(x: Tensor, frames: int) -> Tensor:
    """(B T, O, H, W) -> (B, T, O, H, W)."""
    return x.reshape((-1, frames) + x.shape[1:])
