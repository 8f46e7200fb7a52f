"""Configurations of the transformers of Open-Sora v1.0 and v1.1, with the keys of their config.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Optional, TypeVar

from opensora.config.options import check_choice
from opensora.errors import UserError
from opensora.models.model_config import ModelConfig

FREEZES = (None, "not_temporal", "text")

ConfigT = TypeVar("ConfigT", bound="HpcaitechConfig")


@dataclass(frozen=True)
class HpcaitechConfig(ModelConfig):
    """The keys that all transformers of Open-Sora v1.0 and v1.1 have.

    Attributes:
        enable_flash_attn, enable_layernorm_kernel: no effect; the device chooses the operators (`opensora.ops`).
    """

    in_channels: int = 4
    patch_size: Sequence[int] = (1, 2, 2)
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    class_dropout_prob: float = 0.1
    no_temporal_pos_emb: bool = False
    caption_channels: int = 4096
    model_max_length: int = 120
    enable_flash_attn: bool = False
    enable_layernorm_kernel: bool = False
    enable_sequence_parallelism: bool = False

    ignored: ClassVar[tuple] = ("architectures", "auto_map", "model_type", "torch_dtype", "transformers_version")
    fixed: ClassVar[dict] = {"enable_sequence_parallelism": False}
    respelled: ClassVar[dict] = {"enable_flashattn": "enable_flash_attn"}

    @classmethod
    def from_dict(cls: type[ConfigT], values: Mapping[str, Any]) -> ConfigT:
        return super().from_dict({cls.respelled.get(key, key): value for key, value in values.items()})

    def __post_init__(self):
        name = type(self).__name__.removesuffix("Config")
        for key, value in self.fixed.items():
            if getattr(self, key) != value:
                raise UserError(f"{key} {getattr(self, key)!r} is not supported; {name} needs {value!r}")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True)
class STDiT2Config(HpcaitechConfig):
    """Fields are the keys of config.json.

    Attributes:
        input_sq_size: the reference side length of the position embedding, sqrt(H W) in pixels.
        input_size: the size the model was first built for; it accepts any size.
    """

    input_size: Sequence[Optional[int]] = (None, None, None)
    input_sq_size: int = 32
    pred_sigma: bool = True
    drop_path: float = 0.0
    freeze: Optional[str] = None
    qk_norm: bool = False

    fixed: ClassVar[dict] = {**HpcaitechConfig.fixed, "drop_path": 0.0, "no_temporal_pos_emb": False}

    def __post_init__(self):
        super().__post_init__()
        if self.hidden_size % 12 or self.hidden_size % (2 * self.num_heads):
            raise UserError(
                f"hidden_size {self.hidden_size} is not a multiple of 12 and of twice num_heads {self.num_heads}"
            )
        check_choice("freeze", self.freeze, FREEZES)

    @property
    def out_channels(self) -> int:
        """Channels of the noise; with `pred_sigma` twice as many, to interpolate the log variance."""
        return 2 * self.in_channels if self.pred_sigma else self.in_channels


@dataclass(frozen=True)
class FixedSizeConfig(HpcaitechConfig):
    """Keys of the transformers of v1.0, which accept latents of one size.

    Attributes:
        input_size: frames, rows and columns of the latents.
    """

    input_size: Sequence[int] = (16, 32, 32)

    width_multiple: ClassVar[int] = 4

    def __post_init__(self):
        super().__post_init__()
        if self.hidden_size % self.width_multiple or self.hidden_size % self.num_heads:
            raise UserError(
                f"hidden_size {self.hidden_size} is not a multiple of {self.width_multiple} and of num_heads "
                f"{self.num_heads}"
            )
        sizes = (self.input_size, self.patch_size)
        if any(len(size) != 3 or min(size) < 1 for size in sizes) or any(n % p for n, p in zip(*sizes)):
            raise UserError(
                f"input_size {self.input_size} is not a multiple of patch_size {self.patch_size}, in frames, rows and "
                "columns of the latents"
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Patches along time, height and width."""
        t, h, w = (n // p for n, p in zip(self.input_size, self.patch_size))
        return t, h, w

    @property
    def spatial_base(self) -> Optional[int]:
        """The side of the square that positions in a frame are stretched to; None: they are not stretched."""
        return None


@dataclass(frozen=True)
class CaptionedConfig(FixedSizeConfig):
    """Keys of the transformers of v1.0 that have cross-attention to the text.

    Attributes:
        space_scale: what positions in a frame are divided by.
        time_scale: what the positions of frames are divided by.
    """

    pred_sigma: bool = True
    drop_path: float = 0.0
    space_scale: float = 1.0
    time_scale: float = 1.0
    freeze: Optional[str] = None

    fixed: ClassVar[dict] = {**FixedSizeConfig.fixed, "drop_path": 0.0}

    def __post_init__(self):
        super().__post_init__()
        check_choice("freeze", self.freeze, FREEZES)
        if min(self.space_scale, self.time_scale) <= 0:
            raise UserError(f"space_scale {self.space_scale} and time_scale {self.time_scale} should be positive")

    @property
    def out_channels(self) -> int:
        """Channels of the noise; with `pred_sigma` twice as many, to interpolate the log variance."""
        return 2 * self.in_channels if self.pred_sigma else self.in_channels


@dataclass(frozen=True)
class STDiTConfig(CaptionedConfig):
    """Fields are the keys of config.json."""

    fixed: ClassVar[dict] = {**CaptionedConfig.fixed, "no_temporal_pos_emb": False}


SIZE_XL = {"depth": 28, "hidden_size": 1152, "num_heads": 16, "patch_size": (1, 2, 2)}
SIZE_XL_2X2 = {**SIZE_XL, "patch_size": (2, 2, 2)}
# Published configurations by name, as keys of `STDiT2Config` and `STDiTConfig`.
PRESETS = {"STDiT2-XL/2": SIZE_XL}
V1_0_PRESETS = {"STDiT-XL/2": SIZE_XL, "STDiT-XL/2x2": SIZE_XL_2X2}
