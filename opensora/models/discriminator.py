"""PatchGAN discriminators of images (Isola et al. 2017, arXiv:1611.07004, section 3.2.2) and of videos.

Open-Sora-Plan trains the autoencoder of v1.0 with the former, those of v1.1 and later with the latter.
"""

from __future__ import annotations

from dataclasses import dataclass

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, Uniform, initializer

from opensora.errors import UserError
from opensora.models.model_config import ModelConfig
from opensora.models.pretrained import PretrainedModel

MOMENTUM = 0.1  # weight of the current batch in the running statistics, as PyTorch defines it


@dataclass(frozen=True)
class DiscriminatorConfig(ModelConfig):
    """Channels of the video, channels after the first layer, and number of layers with spatial stride 2."""

    input_nc: int = 3
    ndf: int = 64
    n_layers: int = 4


@dataclass(frozen=True)
class ImageDiscriminatorConfig(DiscriminatorConfig):
    """The same of images.

    Raises:
        UserError: `use_actnorm`, which no published model has.
    """

    n_layers: int = 3
    use_actnorm: bool = False

    def __post_init__(self):
        if self.use_actnorm:
            raise UserError("use_actnorm true is not supported; published discriminators have batch normalization")


class PatchDiscriminator(PretrainedModel):
    """Base of the discriminators, with one logit for each patch of the input.

    In training mode, batch normalization uses the batch of this process, and every call updates the running statistics,
    including calls that train the generator.

    Attributes:
        dims: number of axes that are convolved.
    """

    config_class: type[DiscriminatorConfig] = DiscriminatorConfig
    config: DiscriminatorConfig
    dims: int

    def __init__(self, **values):
        super().__init__()
        self.config = config = self.config_class.from_dict(values)
        layers = [self.convolution(0, config.input_nc, config.ndf, 2, bias=True), nn.LeakyReLU(0.2)]
        channels = config.ndf
        for n in range(1, config.n_layers + 1):
            out_channels = config.ndf * min(2**n, 8)
            layers += [
                self.convolution(n, channels, out_channels, 2 if n < config.n_layers else 1),
                BatchNorm(out_channels, self.dims),
                nn.LeakyReLU(0.2),
            ]
            channels = out_channels
        layers.append(self.convolution(config.n_layers + 1, channels, 1, 1, bias=True))
        self.main = nn.SequentialCell(layers)

    def convolution(self, n: int, in_channels: int, out_channels: int, stride: int, bias: bool = False) -> nn.Cell:
        """Layer number n, with this stride in space."""
        raise NotImplementedError

    def construct(self, x: Tensor) -> Tensor:
        return self.main(x.astype(self.main[0].weight.dtype)).astype(ms.float32)


class NLayerDiscriminator(PatchDiscriminator):
    """Logits of each patch of images, or of frames as a batch: (N, 3, H, W) -> (N, 1, h, w) float32.

    With the default of 3 layers h is H // 8 - 2, and w likewise, for sizes that are multiples of 8.
    """

    config_class = ImageDiscriminatorConfig
    dims = 2

    def convolution(self, n: int, in_channels: int, out_channels: int, stride: int, bias: bool = False) -> nn.Cell:
        return Convolution(in_channels, out_channels, 4, (stride, stride), bias)


class NLayerDiscriminator3D(PatchDiscriminator):
    """Logits of each patch of a video: (B, 3, T, H, W) -> (B, 1, ceil(T / 4), h, w) float32, about H / 16 by W / 16."""

    dims = 3

    def convolution(self, n: int, in_channels: int, out_channels: int, stride: int, bias: bool = False) -> nn.Cell:
        return Convolution(in_channels, out_channels, 3, (stride if n < 2 else 1, stride, stride), bias)


class Convolution(nn.Cell):
    """Convolution of (B, C, H, W) or (B, C, T, H, W) with a kernel of equal sides and zero padding of 1.

    The layers are small, so the operator Conv3D is faster than the sums of 2-D convolutions that the VAE uses.

    Args:
        stride: along each axis that is convolved.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: tuple[int, ...], bias: bool):
        super().__init__()
        kernel = (kernel_size,) * len(stride)
        self.weight = Parameter(initializer(Normal(0.02), (out_channels, in_channels) + kernel, ms.float32))
        self.bias = None
        if bias:
            bound = (in_channels * kernel_size ** len(stride)) ** -0.5
            self.bias = Parameter(initializer(Uniform(bound), (out_channels,), ms.float32))
        operator = {2: ops.Conv2D, 3: ops.Conv3D}[len(stride)]
        self.convolution = operator(out_channels, kernel_size, pad_mode="pad", pad=1, stride=stride)
        self.per_channel = (-1,) + (1,) * len(stride)

    def construct(self, x: Tensor) -> Tensor:
        y = self.convolution(x, self.weight)
        return y if self.bias is None else y + self.bias.reshape(self.per_channel)


class BatchNorm(nn.Cell):
    """Batch normalization (Ioffe & Szegedy 2015) with PyTorch's names and running statistics.

    The input (B, C, ...) has `dims` axes after the channels.
    """

    keep_float32 = True

    def __init__(self, channels: int, dims: int, eps: float = 1e-5):
        super().__init__()
        self.weight = Parameter(initializer(Normal(0.02, mean=1.0), (channels,), ms.float32))
        self.bias = Parameter(initializer("zeros", (channels,), ms.float32))
        self.running_mean = Parameter(initializer("zeros", (channels,), ms.float32), requires_grad=False)
        self.running_var = Parameter(initializer("ones", (channels,), ms.float32), requires_grad=False)
        self.num_batches_tracked = Parameter(initializer("zeros", (), ms.float32), requires_grad=False)
        self.eps = eps
        self.axes = (0,) + tuple(range(2, 2 + dims))
        self.per_channel = (-1,) + (1,) * dims

    def construct(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        x = x.astype(ms.float32)
        if self.training:
            mean = x.mean(self.axes)
            centered = x - mean.reshape(self.per_channel)
            variance = ops.square(centered).mean(self.axes)
            self._track(ops.stop_gradient(mean), ops.stop_gradient(variance), x.size // x.shape[1])
        else:
            centered = x - self.running_mean.reshape(self.per_channel)
            variance = self.running_var
        scale = self.weight * ops.rsqrt(variance + self.eps)
        return (centered * scale.reshape(self.per_channel) + self.bias.reshape(self.per_channel)).astype(dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Updates the running statistics with means over `count` values; the running variance is unbiased."""
        unbiased = variance * (count / max(1, count - 1))
        ops.assign(self.running_mean, (1 - MOMENTUM) * self.running_mean + MOMENTUM * mean)
        ops.assign(self.running_var, (1 - MOMENTUM) * self.running_var + MOMENTUM * unbiased)
        ops.assign(self.num_batches_tracked, self.num_batches_tracked + 1)
