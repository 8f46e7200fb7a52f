"""Convolutions of videos laid out frame after frame, (B, T, C, H, W).

A frame's channels lie together, so frames go through 2-D convolutions as a batch, and a 3-D convolution is the sum of
one 2-D convolution for each of its kernel's frames. On a CPU this is faster than the operator Conv3D and needs a
fraction of its memory.
"""
from __future__ import annotations

from typing import Sequence

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
        tap = _frames(x[:, k:k + stride * (frames - 1) + 1:stride], weight[:, :, k], stride, padding)
        y = tap if y is None else y + tap
    return _unfold(ops.bias_add(y, bias), frames)


def _frames(x: Tensor, weight: Tensor, stride: int, padding: Sequence[int]) -> Tensor:
    """(B, T, C, H, W) -> (B T, O, H', W')."""
    convolution = ops.Conv2D(weight.shape[0], weight.shape[2:], pad_mode="pad", pad=tuple(padding), stride=stride)
    return convolution(x.reshape((-1,) + x.shape[2:]), weight)


def _unfold(x: Tensor, frames: int) -> Tensor:
    """(B T, O, H, W) -> (B, T, O, H, W)."""
    return x.reshape((-1, frames) + x.shape[1:])
