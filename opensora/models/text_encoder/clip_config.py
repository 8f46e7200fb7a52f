"""Configuration of CLIP's encoders, with the keys of the published config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Optional, TypeVar

from opensora.config.options import check_choice
from opensora.errors import UserError
from opensora.models.model_config import ModelConfig

ConfigT = TypeVar("ConfigT", bound="CLIPTowerConfig")
UNSPECIFIC_END_TOKEN = 2  # of published files, whose end token has another id


@dataclass(frozen=True)
class CLIPTowerConfig(ModelConfig):
    """The keys that both encoders have; the many others of transformers have no effect."""

    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    section: ClassVar[str] = ""  # key of this encoder's values in the config.json of a full CLIP

    @classmethod
    def from_dict(cls: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
        """The configuration with these values, which may be in `section` as in the config.json of a full CLIP."""
        values = values.get(cls.section) or values
        known = {field.name for field in fields(cls)}
        return super().from_dict({key: value for key, value in values.items() if key in known})

    def __post_init__(self):
        check_choice("hidden_act", self.hidden_act, ("quick_gelu", "gelu"))
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )


@dataclass(frozen=True)
class CLIPTextConfig(CLIPTowerConfig):
    """CLIP's text encoder.

    Attributes:
        eos_token_id: the token that ends a text. 2, in the published files, is not its id; see `end_token`.
    """

    vocab_size: int = 49408
    max_position_embeddings: int = 77
    eos_token_id: int = 49407

    section: ClassVar[str] = "text_config"

    @property
    def end_token(self) -> Optional[int]:
        """The id of the token that ends a text; None: the largest id of each text, as in CLIP's own vocabulary."""
        return None if self.eos_token_id == UNSPECIFIC_END_TOKEN else self.eos_token_id


@dataclass(frozen=True)
class CLIPVisionConfig(CLIPTowerConfig):
    """CLIP's image encoder.

    Raises:
        UserError: the patches do not cover the image.
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 32

    section: ClassVar[str] = "vision_config"

    def __post_init__(self):
        super().__post_init__()
        if self.image_size % self.patch_size:
            raise UserError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")

    @property
    def patches(self) -> int:
        """Number of patches of an image."""
        return (self.image_size // self.patch_size) ** 2
