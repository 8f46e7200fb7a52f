"""LAION's linear head for aesthetic quality on features of CLIP ViT-L/14 (github.com/LAION-AI/aesthetic-predictor)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Union

from mindspore import Tensor

from opensora.checkpoint.files import open_state
from opensora.models.common.layers import Linear
from opensora.models.model_config import ModelConfig
from opensora.models.pretrained import PretrainedModel
from opensora.ops.linear import linear


@dataclass(frozen=True)
class AestheticHeadConfig(ModelConfig):
    """`width`: channels of the features."""

    width: int = 768


class AestheticHead(PretrainedModel):
    """Features of unit length (N, D) -> scores of about 0 to 10, (N,)."""

    config_class = AestheticHeadConfig
    config: AestheticHeadConfig

    def __init__(self, **values):
        super().__init__()
        self.config = AestheticHeadConfig.from_dict(values)
        layer = Linear(self.config.width, 1)
        self.weight, self.bias = layer.weight, layer.bias

    @classmethod
    def load(cls, path: Union[str, Path]) -> AestheticHead:
        """The head from `sa_0_4_vit_l_14_linear.pth`; the file tells the width.

        Raises:
            FileNotFoundError: no such file.
            UserError: other weights.
        """
        state = open_state(path)
        width = state["weight"].shape[-1] if "weight" in state else AestheticHeadConfig.width
        return cls.from_pretrained(path, config={"width": width})

    def construct(self, features: Tensor) -> Tensor:
        return linear(features, self.weight, self.bias).reshape(-1)
