"""CLIP: images and texts in one space (Radford et al. 2021, arXiv:2103.00020)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Union

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Normal, initializer

from opensora.checkpoint.files import find_weights, open_state, resolve_path
from opensora.checkpoint.lazy_tensor import LazyTensor
from opensora.errors import UserError
from opensora.models.common.layers import Embedding, LayerNorm, Linear
from opensora.models.model_config import ModelConfig
from opensora.models.pretrained import PretrainedModel
from opensora.models.text_encoder.clip import INITIAL_STD, Encoder, TextTransformer
from opensora.models.text_encoder.clip_config import CLIPTextConfig, CLIPVisionConfig
from opensora.models.vision import openai_clip
from opensora.models.vision.patches import PatchEmbedding


@dataclass(frozen=True)
class CLIPConfig(ModelConfig):
    """The config.json of a full CLIP, or the values that OpenAI's implementation is built with."""

    text_config: dict = field(default_factory=dict)
    vision_config: dict = field(default_factory=dict)
    projection_dim: int = 512

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CLIPConfig:
        if "embed_dim" in values:
            values = openai_clip.published_keys(values)
        known = {item.name for item in fields(cls)}
        return super().from_dict({key: value for key, value in values.items() if key in known and value is not None})

    @property
    def text(self) -> CLIPTextConfig:
        return CLIPTextConfig.from_dict(self.text_config)

    @property
    def vision(self) -> CLIPVisionConfig:
        return CLIPVisionConfig.from_dict(self.vision_config)


class VisionEmbeddings(nn.Cell):
    """Pixels (B, 3, H, W) -> the class token and the patches, with their positions, (B, 1 + n, D)."""

    keep_float32 = ("class_embedding",)

    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        self.class_embedding = Parameter(initializer(Normal(INITIAL_STD), (config.hidden_size,), ms.float32))
        self.patch_embedding = PatchEmbedding(config.hidden_size, config.patch_size, bias=False)
        self.position_embedding = Embedding(1 + config.patches, config.hidden_size, INITIAL_STD)

    def construct(self, pixels: Tensor) -> Tensor:
        patches = self.patch_embedding(pixels)
        token = ops.tile(self.class_embedding.reshape(1, 1, -1), (pixels.shape[0], 1, 1))
        return ops.cat((token.astype(patches.dtype), patches), 1) + self.position_embedding.weight


class VisionTransformer(nn.Cell):
    """Pixels (B, 3, H, W) -> the normalized state of the class token (B, D).

    Raises:
        ValueError: images of another size than the model's.
    """

    def __init__(self, config: CLIPVisionConfig):
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = LayerNorm(config.hidden_size, config.layer_norm_eps)  # published spelling
        self.encoder = Encoder(config, causal=False)
        self.post_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.size = config.image_size

    def construct(self, pixels: Tensor) -> Tensor:
        if pixels.shape[2] != self.size or pixels.shape[3] != self.size:
            raise ValueError(f"images of {pixels.shape[2]}x{pixels.shape[3]}, but the model takes {self.size} squared")
        states = self.encoder(self.pre_layrnorm(self.embeddings(pixels)))
        return self.post_layernorm(states[:, 0])


class CLIPModel(PretrainedModel):
    """Features of texts and images, whose cosine says how well they match.

    Loads transformers' folders and files as well as OpenAI's TorchScript archives and state dicts.
    """

    config_class = CLIPConfig
    config: CLIPConfig
    published_as = ("clip",)
    ignored_prefixes = (
        "text_model.embeddings.position_ids",
        "vision_model.embeddings.position_ids",
        *openai_clip.SCALARS,
    )

    def __init__(self, **values):
        super().__init__()
        self.config = config = CLIPConfig.from_dict(values)
        self.text_model, self.vision_model = TextTransformer(config.text), VisionTransformer(config.vision)
        self.text_projection = Linear(config.text.hidden_size, config.projection_dim, bias=False)
        self.visual_projection = Linear(config.vision.hidden_size, config.projection_dim, bias=False)
        self.logit_scale = Parameter(Tensor(np.log(1 / 0.07), ms.float32))  # initial value: section 2.5

    @classmethod
    def load(cls, path: Union[str, Path]) -> CLIPModel:
        """The model from a folder with config.json, or from one of OpenAI's files, which tell all sizes.

        Raises:
            FileNotFoundError: no such file or folder.
            UserError: other weights.
        """
        path = resolve_path(path)
        if (path if path.is_dir() else path.parent).joinpath("config.json").exists():
            return cls.from_pretrained(path)
        source = find_weights(path)
        state = open_state(source)
        if openai_clip.MARK not in state:
            raise UserError(
                f"{source}: neither a CLIP of OpenAI, which has a tensor {openai_clip.MARK}, nor in a folder with the "
                "config.json of a CLIP"
            )
        return cls.from_pretrained(source, config=openai_clip.config_of(state))

    def construct(self, input_ids: Tensor, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """The features of texts (B, L) and of images (N, 3, H, W): (B, E) and (N, E)."""
        return self.text_features(input_ids), self.image_features(pixel_values)

    def text_features(self, input_ids: Tensor) -> Tensor:
        """Features (B, E) of token ids (B, L)."""
        return self.text_projection(self.text_model(input_ids)[1])

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """Features (N, E) of preprocessed images (N, 3, H, W)."""
        return self.visual_projection(self.vision_model(pixel_values))

    def canonical_names(self, state: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """Also accepts OpenAI's names."""
        state = super().canonical_names(state)
        return openai_clip.canonical_state(state) if openai_clip.MARK in state else state
