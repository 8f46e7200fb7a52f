"""Configuration of CLIP's text encoder, with the keys of the published config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Optional

from opensora.config.options import check_choice
from opensora.errors import UserError
from opensora.models.model_config import ModelConfig

UNSPECIFIC_END_TOKEN = 2  # of published files, whose end token has another id


@dataclass(frozen=True)
class CLIPTextConfig(ModelConfig):
    """The keys that the text encoder needs; the many others of transformers have no effect on it.

    Attributes:
        eos_token_id: the token that ends a text. 2, in the published files, is not its id; see `end_token`.
    """

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CLIPTextConfig:
        """The configuration with these values, which may be in `text_config` as in the config.json of a full CLIP."""
        values = values.get("text_config") or values
        known = {field.name for field in fields(cls)}
        return super().from_dict({key: value for key, value in values.items() if key in known})

    def __post_init__(self):
        check_choice("hidden_act", self.hidden_act, ("quick_gelu", "gelu"))
        if self.hidden_size % self.num_attention_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )

    @property
    def end_token(self) -> Optional[int]:
        """The id of the token that ends a text; None: the largest id of each text, as in CLIP's own vocabulary."""
        return None if self.eos_token_id == UNSPECIFIC_END_TOKEN else self.eos_token_id
