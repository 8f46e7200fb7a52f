"""Convolutions of videos in the layout (B, T, C, H, W).

CPUs have a fused kernel. Otherwise a 3-D convolution is a sum of 2-D convolutions, one per kernel frame, over all
frames as a batch. On a CPU that is faster than the operator Conv3D and needs a fraction of its memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import mindspore as ms
from mindspore import Tensor, ops

from opensora.ops.cpu import conv as kernels
from opensora.ops.cpu.custom_op import gemm_available
from opensora.ops.precision import float32_on_cpu


@float32_on_cpu
def conv2d(x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, padding: Sequence[int] = (0, 0, 0, 0)) -> Tensor:
    """2-D convolution of every frame: x (B, T, C, H, W), zeros (top, bottom, left, right).

    The weight is (O, C, k, k), or (O, C, 1, k, k).
    """
    if gemm_available(x.dtype) and kernels.supports(weight, stride):
        frames = x if stride == 1 else x.reshape((-1, 1) + x.shape[2:])  # the kernel's stride includes time
        weight = weight.reshape(weight.shape[:2] + (1,) + weight.shape[-2:])
        y = kernels.conv3d(frames, weight, bias, stride, tuple(padding))
        return y.reshape(x.shape[:2] + y.shape[2:])
    weight = weight.reshape(weight.shape[:2] + weight.shape[-2:])
    y = _convolve(x.reshape((-1,) + x.shape[2:]), weight, stride, padding)
    return _unfold(ops.bias_add(y, bias), x.shape[1])


@float32_on_cpu
def conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int = 1,
    padding: Sequence[int] = (0, 0, 0, 0),
    cache: Optional[Tensor] = None,
    replicate_pad: int = 0,
) -> Tensor:
    """Causal 3-D convolution of x (B, T, C, H, W) with weight (O, C, k, k', k').

    Args:
        stride: In time, height and width.
        padding: Zeros in space, (top, bottom, left, right). There is no zero padding in time.
        cache: The P frames before x, (B, P, C, H, W), such as the last frames of the previous chunk.
        replicate_pad: Number P of copies of the first frame of x before x, if there is no cache.

    Returns:
        (B, (P + T - k) // stride + 1, O, H', W').
    """
    if gemm_available(x.dtype) and kernels.supports(weight, stride):
        return kernels.conv3d(x, weight, bias, stride, tuple(padding), cache, replicate_pad)
    if replicate_pad:
        cache = ops.tile(x[:, :1], (1, replicate_pad, 1, 1, 1))
    if cache is not None:
        x = ops.cat((cache, x), 1)
    frames = (x.shape[1] - weight.shape[2]) // stride + 1
    y = None
    for k, frame_weight in enumerate(_kernel_frames(weight)):
        x_frames = _strided_frames(x, k, frames, stride).reshape((-1,) + x.shape[2:])
        term = _convolve(x_frames, frame_weight, stride, padding)
        y = term if y is None else y + term
    return _unfold(ops.bias_add(y, bias), frames)


def _kernel_frames(weight: Tensor) -> list[Tensor]:
    """(O, C, k, k', k') -> k times (O, C, k', k')."""
    if weight.shape[2] == 1:
        return [weight.reshape(weight.shape[:2] + weight.shape[3:])]
    return [weight[:, :, k] for k in range(weight.shape[2])]


def _strided_frames(x: Tensor, first: int, count: int, stride: int) -> Tensor:
    """x[:, first :: stride], `count` frames."""
    if stride == 1:
        return x[:, first : first + count]
    # On a CPU the gradient of MindSpore's strided slice writes out of bounds if the batch is larger than 1.
    return ops.gather(x, Tensor(tuple(range(first, first + stride * count, stride)), ms.int32), 1)


def _convolve(x: Tensor, weight: Tensor, stride: int, padding: Sequence[int]) -> Tensor:
    """(B T, C, H, W) -> (B T, O, H', W')."""
    return ops.Conv2D(weight.shape[0], weight.shape[2:], pad_mode="pad", pad=tuple(padding), stride=stride)(x, weight)


def _unfold(x: Tensor, frames: int) -> Tensor:
    """(B T, O, H, W) -> (B, T, O, H, W)."""
    return x.reshape((-1, frames) + x.shape[1:])
