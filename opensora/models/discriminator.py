"""The 3-D PatchGAN discriminator (Isola et al. 2017, arXiv:1611.07004, section 3.2.2, with time as a third axis)."""

from __future__ import annotations

from dataclasses import dataclass

import mindspore as ms
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, Uniform, initializer

from opensora.models.model_config import ModelConfig
from opensora.models.pretrained import PretrainedModel

MOMENTUM = 0.1  # weight of the current batch in the running statistics, as PyTorch defines it


@dataclass(frozen=True)
class DiscriminatorConfig(ModelConfig):
    """Channels of the video, channels after the first layer, and number of layers with spatial stride 2."""

    input_nc: int = 3
    ndf: int = 64
    n_layers: int = 4


class NLayerDiscriminator3D(PretrainedModel):
    """Logits of each patch of a video: (B, 3, T, H, W) -> (B, 1, ceil(T / 4), h, w) float32, about H / 16 by W / 16.

    In training mode, batch normalization uses the batch of this process, and every call updates the running statistics,
    including calls that train the generator.
    """

    config_class = DiscriminatorConfig
    config: DiscriminatorConfig

    def __init__(self, **values):
        super().__init__()
        self.config = DiscriminatorConfig.from_dict(values)
        layers = [Conv3d(self.config.input_nc, self.config.ndf, 2, 2, bias=True), nn.LeakyReLU(0.2)]
        channels = self.config.ndf
        for n in range(1, self.config.n_layers + 1):
            out_channels = self.config.ndf * min(2**n, 8)
            halves = n < self.config.n_layers
            layers += [
                Conv3d(channels, out_channels, 2 if n == 1 and halves else 1, 2 if halves else 1),
                BatchNorm3d(out_channels),
                nn.LeakyReLU(0.2),
            ]
            channels = out_channels
        layers.append(Conv3d(channels, 1, 1, 1, bias=True))
        self.main = nn.SequentialCell(layers)

    def construct(self, x: Tensor) -> Tensor:
        return self.main(x.astype(self.main[0].weight.dtype)).astype(ms.float32)


class Conv3d(nn.Cell):
    """3x3x3 convolution of (B, C, T, H, W) with zero padding in time and space.

    The layers are small, so the operator Conv3D is faster than the sums of 2-D convolutions that the VAE uses.
    """

    def __init__(self, in_channels: int, out_channels: int, time_stride: int, stride: int, bias: bool = False):
        super().__init__()
        self.weight = Parameter(initializer(Normal(0.02), (out_channels, in_channels, 3, 3, 3), ms.float32))
        self.bias = None
        if bias:
            bound = (in_channels * 27) ** -0.5
            self.bias = Parameter(initializer(Uniform(bound), (out_channels,), ms.float32))
        self.convolution = ops.Conv3D(out_channels, 3, pad_mode="pad", pad=1, stride=(time_stride, stride, stride))

    def construct(self, x: Tensor) -> Tensor:
        y = self.convolution(x, self.weight)
        return y if self.bias is None else y + self.bias.reshape(-1, 1, 1, 1)


class BatchNorm3d(nn.Cell):
    """Batch normalization (Ioffe & Szegedy 2015) of (B, C, T, H, W) with PyTorch's names and running statistics."""

    keep_float32 = True

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.weight = Parameter(initializer(Normal(0.02, mean=1.0), (channels,), ms.float32))
        self.bias = Parameter(initializer("zeros", (channels,), ms.float32))
        self.running_mean = Parameter(initializer("zeros", (channels,), ms.float32), requires_grad=False)
        self.running_var = Parameter(initializer("ones", (channels,), ms.float32), requires_grad=False)
        self.num_batches_tracked = Parameter(initializer("zeros", (), ms.float32), requires_grad=False)
        self.eps = eps

    def construct(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        x = x.astype(ms.float32)
        if self.training:
            mean = x.mean((0, 2, 3, 4))
            centered = x - mean.reshape(-1, 1, 1, 1)
            variance = ops.square(centered).mean((0, 2, 3, 4))
            self._track(ops.stop_gradient(mean), ops.stop_gradient(variance), x.size // x.shape[1])
        else:
            centered = x - self.running_mean.reshape(-1, 1, 1, 1)
            variance = self.running_var
        scale = self.weight * ops.rsqrt(variance + self.eps)
        return (centered * scale.reshape(-1, 1, 1, 1) + self.bias.reshape(-1, 1, 1, 1)).astype(dtype)

    def _track(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Updates the running statistics with means over `count` values; the running variance is unbiased."""
        unbiased = variance * (count / max(1, count - 1))
        ops.assign(self.running_mean, (1 - MOMENTUM) * self.running_mean + MOMENTUM * mean)
        ops.assign(self.running_var, (1 - MOMENTUM) * self.running_var + MOMENTUM * unbiased)
        ops.assign(self.num_batches_tracked, self.num_batches_tracked + 1)
