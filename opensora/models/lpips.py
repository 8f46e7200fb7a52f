"""LPIPS, a learned perceptual distance between images (Zhang et al. 2018, arXiv:1801.03924)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Union

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from opensora.checkpoint.files import resolve_path
from opensora.checkpoint.lazy_tensor import ArrayTensor, LazyTensor
from opensora.config.options import check_choice
from opensora.models.model_config import ModelConfig
from opensora.models.pretrained import PretrainedModel

# The published weights with the VGG backbone.
VGG_URL = "https://download-mindspore.osinfra.cn/toolkits/mindone/autoencoders/lpips_vgg-426bf45c.ckpt"


class Convolution(NamedTuple):
    channels: int
    kernel_size: int = 3
    stride: int = 1
    padding: int = 1


class Backbone(NamedTuple):
    """The convolutions of a classifier, in slices; the features at the end of each slice are compared.

    A ReLU follows every convolution; the slices in `pooled` start with max-pooling at stride 2. Layers are numbered
    consecutively over all slices, as in torchvision's `features`.
    """

    slices: tuple
    pool_size: int
    pooled: tuple


BACKBONES = {
    "vgg": Backbone(
        (
            (Convolution(64),) * 2,
            (Convolution(128),) * 2,
            (Convolution(256),) * 3,
            (Convolution(512),) * 3,
            (Convolution(512),) * 3,
        ),
        pool_size=2,
        pooled=(1, 2, 3, 4),
    ),
    "alex": Backbone(
        (
            (Convolution(64, 11, 4, 2),),
            (Convolution(192, 5, 1, 2),),
            (Convolution(384),),
            (Convolution(256),),
            (Convolution(256),),
        ),
        pool_size=3,
        pooled=(1, 2),
    ),
}
# Normalization from pixels in [-1, 1] to the range that the classifiers were trained with.
SCALING = {
    "shift": np.array([-0.030, -0.088, -0.188], np.float32).reshape(1, 3, 1, 1),
    "scale": np.array([0.458, 0.448, 0.450], np.float32).reshape(1, 3, 1, 1),
}


@dataclass(frozen=True)
class LPIPSConfig(ModelConfig):
    """`net`: the backbone, vgg or alex. Raises UserError for any other."""

    net: str = "vgg"

    def __post_init__(self):
        check_choice("net", self.net, BACKBONES)


class LPIPS(PretrainedModel):
    """The distance between images x and y, (N, 3, H, W) in [-1, 1]: (N,).

    Compares classifier features, normalized to unit length at each position, at five depths: squared differences,
    summed over channels with weights learned from human judgments. No parameter is trainable. The published network
    has a dropout before each sum, which is only used to train these weights and omitted here.
    """

    config_class = LPIPSConfig
    config: LPIPSConfig
    ignored_prefixes = ("lins.",)  # the package `lpips` stores the weights of the sums twice

    def __init__(self, **values):
        super().__init__()
        self.config = LPIPSConfig.from_dict(values)
        backbone = BACKBONES[self.config.net]
        self.shift, self.scale = Tensor(SCALING["shift"]), Tensor(SCALING["scale"])
        self.net = Features(backbone)
        self.lin0, self.lin1, self.lin2, self.lin3, self.lin4 = [
            ChannelSum(convolutions[-1].channels) for convolutions in backbone.slices
        ]
        for parameter in self.get_parameters():
            parameter.requires_grad = False

    @classmethod
    def load(cls, path: Union[str, Path], net: str = "vgg") -> LPIPS:
        """The network with weights from a file: MindSpore's `lpips_vgg-426bf45c.ckpt` or a torch state dict.

        Args:
            path: the file.
            net: the backbone, vgg or alex.

        Raises:
            FileNotFoundError: no such file.
            UserError: the file has other content.
        """
        try:
            path = resolve_path(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{path}: no such file. It should hold the weights of LPIPS: {_download_hint(net)}run with the PyTorch "
                f"package lpips: torch.save(lpips.LPIPS(net={net!r}).state_dict(), {str(path)!r})"
            ) from error
        return cls.from_pretrained(path, config={"net": net})

    def construct(self, x: Tensor, y: Tensor) -> Tensor:
        distance = 0
        for level in self.maps(x, y):
            distance = distance + level.mean((1, 2, 3))
        return distance

    def maps(self, x: Tensor, y: Tensor) -> tuple:
        """The distance map (N, 1, h, w) at each of the five depths."""
        x, y = self.net((x - self.shift) / self.scale), self.net((y - self.shift) / self.scale)
        sums = (self.lin0, self.lin1, self.lin2, self.lin3, self.lin4)
        return tuple(
            weighted_sum(ops.square(_unit_length(a) - _unit_length(b))) for weighted_sum, a, b in zip(sums, x, y)
        )

    def torch_buffers(self) -> dict[str, np.ndarray]:
        return {f"scaling_layer.{name}": value for name, value in SCALING.items()}

    def canonical_names(self, state: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """Also accepts MindSpore's names, which number the layers of each slice from 0."""
        state = super().canonical_names(state)
        renamed = {
            self.net.mindspore_names[name]: tensor for name, tensor in state.items() if name in self.net.mindspore_names
        }
        if set(renamed) <= set(state):
            return state
        state = {name: tensor for name, tensor in state.items() if not name.startswith("net.")}
        # MindSpore's file comes from MindCV's VGG16, which has no biases.
        zeros = {
            name: ArrayTensor(np.zeros(parameter.shape, np.float32))
            for name, parameter in self.parameters_and_names()
            if name.endswith(".bias")
        }
        return {**zeros, **state, **renamed}


class Features(nn.Cell):
    """Normalized images (N, 3, H, W) -> features at the end of each of the five slices, (N, C, h, w)."""

    def __init__(self, backbone: Backbone):
        super().__init__()
        slices, channels, index = [], 3, 0
        self.mindspore_names = {}
        for number, convolutions in enumerate(backbone.slices):
            layers = OrderedDict()
            first = index
            if number in backbone.pooled:
                layers[str(index)] = nn.MaxPool2d(backbone.pool_size, 2)
                index += 1
            for out_channels, kernel_size, stride, padding in convolutions:
                layers[str(index)] = nn.Conv2d(
                    channels, out_channels, kernel_size, stride, pad_mode="pad", padding=padding, has_bias=True
                )
                layers[str(index + 1)] = nn.ReLU()
                for kind in ("weight", "bias"):
                    name = f"net.slice{number + 1}"
                    self.mindspore_names[f"{name}.{index - first}.{kind}"] = f"{name}.{index}.{kind}"
                channels, index = out_channels, index + 2
            slices.append(nn.SequentialCell(layers))
        self.slice1, self.slice2, self.slice3, self.slice4, self.slice5 = slices

    def construct(self, x: Tensor) -> tuple:
        x1 = self.slice1(x)
        x2 = self.slice2(x1)
        x3 = self.slice3(x2)
        x4 = self.slice4(x3)
        return x1, x2, x3, x4, self.slice5(x4)


class ChannelSum(nn.Cell):
    """Weighted sum over channels, (N, C, h, w) -> (N, 1, h, w)."""

    def __init__(self, channels: int):
        super().__init__()
        self.model = nn.SequentialCell(OrderedDict({"1": nn.Conv2d(channels, 1, 1, has_bias=False)}))

    def construct(self, x: Tensor) -> Tensor:
        return self.model(x)


def _download_hint(net: str) -> str:
    return f"download {VGG_URL} to that path, or " if net == "vgg" else ""


def _unit_length(x: Tensor) -> Tensor:
    x = x.astype(ms.float32)
    # The lower bound keeps the gradient of the square root finite if all features are 0.
    squared = ops.maximum(ops.square(x).sum(1, keepdims=True), 1e-20)
    return x / (ops.sqrt(squared) + 1e-10)
