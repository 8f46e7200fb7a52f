"""I3D, a classifier of videos (Carreira & Zisserman 2017, arXiv:1705.07750, figure 3).

The names are those of piergiaj/pytorch-i3d.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Union

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import initializer

from opensora.checkpoint.lazy_tensor import LazyTensor
from opensora.models.common.layers import Conv3d
from opensora.models.model_config import ModelConfig
from opensora.models.pretrained import PretrainedModel
from opensora.ops.conv import conv3d

# Channels of the branches of each block: b0; b1a, b1b; b2a, b2b; b3b.
BLOCKS = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
# Max-pooling before a layer: name, kernel and stride along time and in space.
POOLS = {
    "Conv3d_2b_1x1": ("MaxPool3d_2a_3x3", (1, 3), (1, 2)),
    "Mixed_3b": ("MaxPool3d_3a_3x3", (1, 3), (1, 2)),
    "Mixed_4b": ("MaxPool3d_4a_3x3", (3, 3), (2, 2)),
    "Mixed_5b": ("MaxPool3d_5a_2x2", (2, 2), (2, 2)),
}
HEAD_POOL = (2, 7)  # average pooling before the logits, along time and in space
LEAST_FRAMES, LEAST_SIDE = 9, 193  # of a video


@dataclass(frozen=True)
class I3DConfig(ModelConfig):
    """`eps`: of the batch norms; 1e-5 in the evaluations of Open-Sora-Plan, 1e-3 in the original network."""

    num_classes: int = 400
    in_channels: int = 3
    eps: float = 1e-5

    ignored = ("final_endpoint",)


class BatchNorm(nn.Cell):
    """Batch norm with running statistics (Ioffe & Szegedy 2015, arXiv:1502.03167): a scale and a shift a channel."""

    keep_float32 = True

    def __init__(self, channels: int, eps: float):
        super().__init__()
        for name, value in (("weight", "ones"), ("bias", "zeros"), ("running_mean", "zeros"), ("running_var", "ones")):
            setattr(self, name, Parameter(initializer(value, (channels,), ms.float32), requires_grad=False))
        self.eps = eps

    def construct(self) -> tuple[Tensor, Tensor]:
        scale = self.weight / ops.sqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale


class Kernel(nn.Cell):
    """The weight of a convolution without bias, under its published name."""

    def __init__(self, in_channels: int, out_channels: int, size: int):
        super().__init__()
        shape = (out_channels, in_channels, size, size, size)
        self.weight = Parameter(initializer("he_uniform", shape, ms.float32), requires_grad=False)

    def construct(self) -> Tensor:
        return self.weight


class ConvNormReLU(nn.Cell):
    """Convolution, batch norm, ReLU. (B, T, C, H, W) -> (B, T', C', H', W'), as many frames and pixels as strides fit.

    Padding is TensorFlow's "same": it depends on the input, and the larger half comes last.
    """

    def __init__(self, in_channels: int, out_channels: int, size: int, stride: int = 1, eps: float = 1e-5):
        super().__init__()
        self.conv3d = Kernel(in_channels, out_channels, size)
        self.bn = BatchNorm(out_channels, eps)
        self.size, self.stride = size, stride

    def construct(self, x: Tensor) -> Tensor:
        scale, shift = self.bn()
        weight = self.conv3d() * scale.reshape(-1, 1, 1, 1, 1)
        front, back = _same_padding(x.shape[1], self.size, self.stride)
        padding = _same_padding(x.shape[3], self.size, self.stride) + _same_padding(x.shape[4], self.size, self.stride)
        return ops.relu(conv3d(_pad_time(x, front, back), weight, shift, self.stride, padding))


class MaxPool(nn.Cell):
    """Max-pooling with "same" padding by zeros, of features that are not negative. (B, T, C, H, W)."""

    def __init__(self, kernel: Sequence[int], stride: Sequence[int]):
        super().__init__()
        self.kernel, self.stride = tuple(kernel), tuple(stride)
        self.in_space = ops.MaxPool(self.kernel[1], self.stride[1], "same")

    def construct(self, x: Tensor) -> Tensor:
        b, t, c, h, w = x.shape
        pooled = self.in_space(x.reshape(b * t, c, h, w))
        x = pooled.reshape(b, t, c, pooled.shape[2], pooled.shape[3])
        size, stride = self.kernel[0], self.stride[0]
        if size == 1:
            return x
        front, back = _same_padding(t, size, stride)
        x = _pad_time(x, front, back)
        frames = (x.shape[1] - size) // stride + 1
        y = x[:, 0 : stride * frames : stride]
        for k in range(1, size):
            y = ops.maximum(y, x[:, k : k + stride * (frames - 1) + 1 : stride])
        return y


class Mixed(nn.Cell):
    """An inception block: four branches, concatenated along the channels."""

    def __init__(self, in_channels: int, channels: Sequence[int], eps: float):
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = channels
        self.b0 = ConvNormReLU(in_channels, b0, 1, eps=eps)
        self.b1a = ConvNormReLU(in_channels, b1a, 1, eps=eps)
        self.b1b = ConvNormReLU(b1a, b1b, 3, eps=eps)
        self.b2a = ConvNormReLU(in_channels, b2a, 1, eps=eps)
        self.b2b = ConvNormReLU(b2a, b2b, 3, eps=eps)
        self.b3a = MaxPool((3, 3), (1, 1))
        self.b3b = ConvNormReLU(in_channels, b3b, 1, eps=eps)

    def construct(self, x: Tensor) -> Tensor:
        branches = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))
        return ops.cat(branches, 2)


class Logits(nn.Cell):
    """The classifier, under its published name."""

    def __init__(self, in_channels: int, classes: int):
        super().__init__()
        self.conv3d = Conv3d(in_channels, classes, 1)

    def construct(self, x: Tensor) -> Tensor:
        return self.conv3d(x)


class I3D(PretrainedModel):
    """Videos (B, 3, T, H, W) in [-1, 1] -> logits (B, classes), the mean over time.

    Videos have at least 9 frames and 193 pixels a side, and are 224 pixels squared in evaluations.
    """

    config_class = I3DConfig
    config: I3DConfig

    def __init__(self, **values):
        super().__init__()
        self.config = config = I3DConfig.from_dict(values)
        layers = {
            "Conv3d_1a_7x7": ConvNormReLU(config.in_channels, 64, 7, 2, config.eps),
            "Conv3d_2b_1x1": ConvNormReLU(64, 64, 1, eps=config.eps),
            "Conv3d_2c_3x3": ConvNormReLU(64, 192, 3, eps=config.eps),
        }
        channels = 192
        for name, branches in BLOCKS.items():
            layers[name] = Mixed(channels, branches, config.eps)
            channels = branches[0] + branches[2] + branches[4] + branches[5]
        self.endpoints = []  # names of the layers in `steps`
        steps = []
        for name, layer in layers.items():
            if name in POOLS:
                pool, kernel, stride = POOLS[name]
                self.endpoints.append(pool)
                steps.append(MaxPool(kernel, stride))
            setattr(self, name, layer)
            self.endpoints.append(name)
            steps.append(layer)
        self.steps = tuple(steps)
        self.logits = Logits(channels, config.num_classes)

    @classmethod
    def load(cls, path: Union[str, Path]) -> I3D:
        """The network from a state dict or a TorchScript archive.

        Raises:
            FileNotFoundError: no such file.
            UserError: other weights.
        """
        return cls.from_pretrained(path, config={})

    def construct(self, video: Tensor) -> Tensor:
        return self.logits(self.features(video)).mean((1, 3, 4))

    def features(self, video: Tensor) -> Tensor:
        """The features before the logits, (B, T', 1024, 1, 1).

        Raises:
            ValueError: a video that is too short or too small, or whose frames are larger than 224 pixels.
        """
        x = ops.transpose(video, (0, 2, 1, 3, 4))
        for step in self.steps:
            x = step(x)
        b, t, c, h, w = x.shape
        frames, side = HEAD_POOL
        if t < frames or h != side or w != side:
            raise ValueError(
                f"a video of {tuple(video.shape)}: I3D takes (B, 3, T, H, W) of 9 frames or more and 193 to 224 pixels"
            )
        in_space = x.mean((3, 4), keep_dims=True)
        return (in_space[:, :-1] + in_space[:, 1:]) / frames

    def canonical_names(self, state: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """Without counters of batches. Other names than the published ones are matched by the order of the layers."""
        state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
        names = list(self.own_parameters())
        if set(names) & set(state):
            return super().canonical_names(state)
        ours = _layers(names)
        theirs = _layers([name for name in state if len(state[name].shape) in (1, 5)])
        if [sorted(layer) for layer in ours] != [sorted(layer) for layer in theirs]:
            return super().canonical_names(state)
        return {one[kind]: state[other[kind]] for one, other in zip(ours, theirs) for kind in one}


def _layers(names: Sequence[str]) -> list[dict[str, str]]:
    """Names grouped by their module, in order: (weight, bias, ...) -> name."""
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        module, _, kind = name.rpartition(".")
        groups.setdefault(module, {})[kind] = name
    return list(groups.values())


def _same_padding(length: int, size: int, stride: int) -> tuple[int, int]:
    """The padding in front and at the end with which ceil(length / stride) windows fit."""
    total = max(size - (length % stride or stride), 0)
    return total // 2, total - total // 2


def _pad_time(x: Tensor, front: int, back: int) -> Tensor:
    """Zeros before and after the frames of (B, T, C, H, W)."""
    b, _, c, h, w = x.shape
    parts = [x]
    if front:
        parts = [ops.zeros((b, front, c, h, w), x.dtype)] + parts
    if back:
        parts = parts + [ops.zeros((b, back, c, h, w), x.dtype)]
    return ops.cat(parts, 1) if len(parts) > 1 else x
