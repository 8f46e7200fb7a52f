"""Changes of resolution in space and time, on (B, T, C, H, W).

The tables map the names in a config.json to functions that make the layer from its number of channels.
"""

from __future__ import annotations

from typing import Callable

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from opensora.models.common.layers import Conv2d, Conv3d, Downsample
from opensora.models.common.video_blocks import CausalConv3d, Spatial2xTime2x3DDownsample, Spatial2xTime2x3DUpsample
from opensora.ops.resample import (
    causal_windows,
    double_later_frames,
    mean_of_windows,
    upsample_linear_2x,
    upsample_nearest_2x,
)

INITIAL_MIX = 2.0  # before the sigmoid


class FrameConv(nn.Cell):
    """Causal convolution over one frame, 1x3x3; the inner cell gives the parameters their published names."""

    def __init__(self, channels: int, stride: int = 1, padding: tuple = (1, 1, 1, 1)):
        super().__init__()
        self.conv = Conv2d(channels, channels, stride=stride, padding=padding, frame_axis=True)

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(x)


class SpatialDownsample2x(nn.Cell):
    """`Downsample` with the parameters of a 3-D convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = FrameConv(channels, stride=2, padding=(0, 1, 0, 1))

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(x)


class SpatialUpsample2x(nn.Cell):
    """Doubles height and width, frame by frame: nearest-neighbor upsampling, then a convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = FrameConv(channels)

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(upsample_nearest_2x(x))


class TimeDownsample2x(nn.Cell):
    """Halves time: the mean of every second frame and the two before it. T frames become ceil(T / 2)."""

    def construct(self, x: Tensor) -> Tensor:
        return mean_of_windows(causal_windows(x)).reshape((x.shape[0], -1) + x.shape[2:])


class TimeUpsample2x(nn.Cell):
    """Doubles time by linear interpolation, except for the first frame: 1 + n frames become 1 + 2n."""

    def construct(self, x: Tensor) -> Tensor:
        return double_later_frames(x, upsample_linear_2x)


class TimeDownsampleRes2x(nn.Cell):
    """Halves time: `TimeDownsample2x` mixed with a convolution of the same frames."""

    keep_float32 = ("mix_factor",)

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv3d(channels, channels, 3, padding=(1, 1, 1, 1))
        self.mix_factor = _mix_factor()

    def construct(self, x: Tensor) -> Tensor:
        windows = causal_windows(x)
        y = _mixed(mean_of_windows(windows), self.conv(windows), self.mix_factor)
        return y.reshape((x.shape[0], -1) + x.shape[2:])


class TimeUpsampleRes2x(nn.Cell):
    """Doubles time: `TimeUpsample2x` mixed with a causal convolution of its output."""

    keep_float32 = ("mix_factor",)

    def __init__(self, channels: int):
        super().__init__()
        self.conv = CausalConv3d(channels, channels)
        self.mix_factor = _mix_factor()

    def construct(self, x: Tensor) -> Tensor:
        x = double_later_frames(x, upsample_linear_2x)
        y, _ = self.conv(x)
        return _mixed(x, y, self.mix_factor)


def _mix_factor() -> Parameter:
    return Parameter(initializer(INITIAL_MIX, (1,), ms.float32))


def _mixed(x: Tensor, y: Tensor, factor: Tensor) -> Tensor:
    """a x + (1 - a) y with a = sigmoid(factor), computed in float32, in the dtype of y."""
    a = ops.sigmoid(factor)
    return (a * x.astype(ms.float32) + (1 - a) * y.astype(ms.float32)).astype(y.dtype)


def _spatial2x_time2x_upsample(channels: int) -> nn.Cell:
    return Spatial2xTime2x3DUpsample(channels, "trilinear")


Table = dict[str, Callable[[int], nn.Cell]]
SPATIAL_DOWNSAMPLE: Table = {
    "Downsample": Downsample,
    "SpatialDownsample2x": SpatialDownsample2x,
    "Spatial2xTime2x3DDownsample": Spatial2xTime2x3DDownsample,
}
TEMPORAL_DOWNSAMPLE: Table = {
    "TimeDownsample2x": lambda channels: TimeDownsample2x(),
    "TimeDownsampleRes2x": TimeDownsampleRes2x,
}
SPATIAL_UPSAMPLE: Table = {
    "SpatialUpsample2x": SpatialUpsample2x,
    "Spatial2xTime2x3DUpsample": _spatial2x_time2x_upsample,
}
TEMPORAL_UPSAMPLE: Table = {"TimeUpsample2x": lambda channels: TimeUpsample2x(), "TimeUpsampleRes2x": TimeUpsampleRes2x}
SPACE_AND_TIME = ("Spatial2xTime2x3DDownsample", "Spatial2xTime2x3DUpsample")  # change time too
