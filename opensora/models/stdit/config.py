"""Configuration of STDiT2, with the keys of the published config.json and of Open-Sora's configuration files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Optional

from opensora.config.options import check_choice
from opensora.errors import UserError
from opensora.models.model_config import ModelConfig

FREEZES = (None, "not_temporal", "text")


@dataclass(frozen=True)
class STDiT2Config(ModelConfig):
    """Fields are the keys of config.json.

    Attributes:
        input_sq_size: the reference side length of the position embedding, sqrt(H W) in pixels.
        input_size: the size the model was first built for; it accepts any size.
        enable_flash_attn, enable_layernorm_kernel: no effect; the device chooses the operators (`opensora.ops`).
    """

    input_size: Sequence[Optional[int]] = (None, None, None)
    input_sq_size: int = 32
    in_channels: int = 4
    patch_size: Sequence[int] = (1, 2, 2)
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    class_dropout_prob: float = 0.1
    pred_sigma: bool = True
    drop_path: float = 0.0
    no_temporal_pos_emb: bool = False
    caption_channels: int = 4096
    model_max_length: int = 120
    freeze: Optional[str] = None
    qk_norm: bool = False
    enable_flash_attn: bool = False
    enable_layernorm_kernel: bool = False
    enable_sequence_parallelism: bool = False

    ignored: ClassVar[tuple] = ("architectures", "auto_map", "model_type", "torch_dtype", "transformers_version")
    fixed: ClassVar[dict] = {"drop_path": 0.0, "no_temporal_pos_emb": False, "enable_sequence_parallelism": False}
    respelled: ClassVar[dict] = {"enable_flashattn": "enable_flash_attn"}

    @classmethod
    def from_dict(cls, values: Mapping) -> STDiT2Config:
        return super().from_dict({cls.respelled.get(key, key): value for key, value in values.items()})

    def __post_init__(self):
        for name, value in self.fixed.items():
            if getattr(self, name) != value:
                raise UserError(f"{name} {getattr(self, name)!r} is not supported; STDiT2 needs {value!r}")
        if self.hidden_size % 12 or self.hidden_size % (2 * self.num_heads):
            raise UserError(
                f"hidden_size {self.hidden_size} is not a multiple of 12 and of twice num_heads {self.num_heads}"
            )
        check_choice("freeze", self.freeze, FREEZES)

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def out_channels(self) -> int:
        """Channels of the noise; with `pred_sigma` twice as many, to interpolate the log variance."""
        return 2 * self.in_channels if self.pred_sigma else self.in_channels


# Published configurations by name, as keys of `STDiT2Config`.
PRESETS = {"STDiT2-XL/2": {"depth": 28, "hidden_size": 1152, "num_heads": 16, "patch_size": (1, 2, 2)}}
