"""Basic layers with PyTorch's parameter names (`weight`, `bias`) and PyTorch's default initialization.

Convolutions and linear layers convert their input to the dtype of their weights, and that is the dtype of their output.
If their weights are stored in fewer bits (`WeightLayer`), it is the dtype that the model computes in. Norms have
float32 weights, compute in float32, and return the dtype of their input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Optional

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, Uniform, initializer

from opensora.checkpoint.lazy_tensor import LazyTensor
from opensora.errors import UserError
from opensora.ops.activations import bias_gelu_tanh
from opensora.ops.conv import conv2d, conv3d
from opensora.ops.linear import linear, rows_at, stacked_linear, stored_linear, widened_weight
from opensora.ops.norms import channel_layer_norm, group_norm, rms_norm
from opensora.ops.precision import cast
from opensora.ops.resample import upsample_nearest_2x

ADAPTER = "lora"  # name of the Cell that a linear layer's adapter is
NO_PADDING = (0, 0, 0, 0)


def _uniform(shape: Sequence[int], fan_in: int) -> Parameter:
    return Parameter(initializer(Uniform(1 / math.sqrt(fan_in)), tuple(shape), ms.float32))


def _filled(value: str, size: int) -> Parameter:
    return Parameter(initializer(value, (size,), ms.float32))


class WeightLayer(nn.Cell):
    """A layer whose `weight` may be stored in fewer bits than the layer computes in (`opensora.models.stored_weights`).

    Attributes:
        compute_dtype: the dtype to compute in; None: that of the weight.
        scale: of int8 weights, see `opensora.ops.linear.stored_linear`.
        may_be_int8: whether the layer computes with int8 weights.
        frozen: whether neither weight nor bias gets gradients.
    """

    compute_dtype: Any = None
    scale: Optional[Tensor] = None
    may_be_int8 = False
    frozen = False
    weight: Parameter

    def dtype(self):
        """The dtype that the layer computes in."""
        return self.weight.dtype if self.compute_dtype is None else self.compute_dtype

    def wide_weight(self) -> Tensor:
        """The weight in the dtype that the layer computes in."""
        return widened_weight(self.weight, self.scale, self.dtype())


class Conv3d(WeightLayer):
    """Convolution of (B, T, C, H, W), unpadded in time; zero `padding` (top, bottom, left, right)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: Sequence[int] = NO_PADDING,
    ):
        super().__init__()
        fan_in = in_channels * kernel_size**3
        self.weight = _uniform((out_channels, in_channels) + (kernel_size,) * 3, fan_in)
        self.bias = _uniform((out_channels,), fan_in)
        self.stride = stride
        self.padding = tuple(padding)

    def construct(self, x: Tensor, cache: Optional[Tensor] = None, replicas: int = 0) -> Tensor:
        """`cache`: frames before x; `replicas`: without a cache, number of copies of x's first frame before x."""
        weight = self.wide_weight()
        cache = None if cache is None else cache.astype(weight.dtype)
        return conv3d(x.astype(weight.dtype), weight, self.bias, self.stride, self.padding, cache, replicas)


class Conv2d(WeightLayer):
    """2-D convolution of each frame of (B, T, C, H, W); zero `padding` (top, bottom, left, right).

    With `frame_axis` the weight has the shape (O, C, 1, k, k) of a 3-D convolution over one frame.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: Sequence[int] = (1, 1, 1, 1),
        frame_axis: bool = False,
    ):
        super().__init__()
        fan_in = in_channels * kernel_size**2
        frames = (1,) if frame_axis else ()
        self.weight = _uniform((out_channels, in_channels) + frames + (kernel_size, kernel_size), fan_in)
        self.bias = _uniform((out_channels,), fan_in)
        self.stride = stride
        self.padding = tuple(padding)

    def construct(self, x: Tensor) -> Tensor:
        weight = self.wide_weight()
        return conv2d(x.astype(weight.dtype), weight, self.bias, self.stride, self.padding)


class Downsample(nn.Cell):
    """Halves height and width, frame by frame, with zero padding at the bottom and right only."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels, stride=2, padding=(0, 1, 0, 1))

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Cell):
    """Doubles height and width, frame by frame: nearest-neighbor upsampling, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv2d(channels, channels)

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(upsample_nearest_2x(x))


class ChannelLayerNorm(nn.Cell):
    """LayerNorm over the channels of (..., C, H, W), followed by SiLU if `silu`."""

    keep_float32 = True

    def __init__(self, channels: int, eps: float = 1e-6, silu: bool = False):
        super().__init__()
        self.weight = _filled("ones", channels)
        self.bias = _filled("zeros", channels)
        self.eps = eps
        self.silu = silu

    def construct(self, x: Tensor) -> Tensor:
        return channel_layer_norm(x, self.weight, self.bias, self.eps, self.silu)


class GroupNorm(nn.Cell):
    """GroupNorm of (B, T, C, H, W), over whole clips or `per_frame`, followed by SiLU if `silu`.

    Raises:
        UserError: `channels` is not a multiple of `groups`.
    """

    keep_float32 = True

    def __init__(self, channels: int, groups: int = 32, eps: float = 1e-6, per_frame: bool = False, silu: bool = False):
        super().__init__()
        if channels % groups:
            raise UserError(f"GroupNorm: {channels} channels are not a multiple of {groups} groups")
        self.weight = _filled("ones", channels)
        self.bias = _filled("zeros", channels)
        self.groups = groups
        self.eps = eps
        self.per_frame = per_frame
        self.silu = silu

    def construct(self, x: Tensor) -> Tensor:
        return group_norm(x, self.groups, self.weight, self.bias, self.eps, self.per_frame, self.silu)


class RMSNorm(nn.Cell):
    """x / rms(x) * weight over the last axis (Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4)."""

    keep_float32 = True

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.weight = _filled("ones", dim)
        self.eps = eps

    def construct(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


class LayerNorm(nn.Cell):
    """LayerNorm over the last axis of (..., D) (Ba et al. 2016, arXiv:1607.06450, eq. 4)."""

    keep_float32 = True

    def __init__(self, dim: int, eps: float = 1e-5):
        super().__init__()
        self.weight = _filled("ones", dim)
        self.bias = _filled("zeros", dim)
        self.eps = eps

    def construct(self, x: Tensor) -> Tensor:
        return channel_layer_norm(x.reshape(*x.shape, 1, 1), self.weight, self.bias, self.eps).reshape(x.shape)


class Dropout(nn.Cell):
    """In training, zeroes elements with probability `p` and divides the others by 1 - p (Srivastava et al. 2014).

    numpy's seeded generator draws the mask, because Ascend's own generators ignore seeds. PyNative mode only.
    """

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def construct(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        mask = (np.random.random(x.shape) >= self.p) / (1 - self.p)
        return (x.astype(ms.float32) * Tensor(mask.astype(np.float32))).astype(x.dtype)


class Linear(WeightLayer):
    """x W^T + b over the last axis; weight (out, in). An adapter (`opensora.models.lora`) adds to it."""

    may_be_int8 = True

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.weight = _uniform((out_features, in_features), in_features)
        self.bias = _uniform((out_features,), in_features) if bias else None
        self.lora: Optional[nn.Cell] = None

    def construct(self, x: Tensor) -> Tensor:
        return self.product(x, self.bias)

    def product(self, x: Tensor, bias: Optional[Tensor]) -> Tensor:
        """x W^T + bias."""
        weight = self.weight  # a Cell looks its parameters up slowly
        if self.compute_dtype is None:
            x = cast(x, weight.dtype)
            y = linear(x, weight, bias, self.frozen)
        else:
            x = cast(x, self.compute_dtype)
            y = stored_linear(x, weight, self.scale, bias)
        return y if self.lora is None else self.lora(x, y)


def stacked(x: Tensor, first: Linear, second: Linear, third: Linear) -> Tensor:
    """The outputs of three layers of the same size, one after another along the batch: (B, ..., in) -> (3 B, ..., out).

    On a CPU one operator computes them if the weights are stored in the dtype that they are computed in and the layers
    have no adapters.
    """
    plain = first.compute_dtype is None and first.bias is not None and not first.frozen
    if not plain or first.lora is not None or second.lora is not None or third.lora is not None:
        return ops.cat((first(x), second(x), third(x)), 0)
    return stacked_linear(
        cast(x, first.dtype()), first.weight, first.bias, second.weight, second.bias, third.weight, third.bias
    )


class LinearGELU(Linear):
    """gelu(x W^T + b), with the tanh approximation of GELU."""

    def construct(self, x: Tensor) -> Tensor:
        return bias_gelu_tanh(self.product(x, None), self.bias)


class Embedding(nn.Cell):
    """Looks up rows of `weight` (rows, width), or of `file_table`, of which it reads only these rows, as `dtype`."""

    file_table: Optional[LazyTensor] = None
    dtype = ms.float32

    def __init__(self, rows: int, width: int, std: float = 1.0):
        super().__init__()
        self.weight = Parameter(initializer(Normal(std), (rows, width), ms.float32))

    def construct(self, indices: Tensor) -> Tensor:
        if self.file_table is not None:
            rows = self.file_table.rows(indices.asnumpy().reshape(-1)).astype(np.float32, copy=False)
            return Tensor(rows).astype(self.dtype).reshape(indices.shape + (-1,))
        return rows_at(self.weight, indices)


def scale_shift_table(rows: int, dim: int) -> Parameter:
    """The learned offsets (rows, dim) of AdaLN-single modulation, N(0, 1 / dim) (Chen et al. 2023, PixArt-alpha)."""
    return Parameter(initializer(Normal(1 / math.sqrt(dim)), (rows, dim), ms.float32))
