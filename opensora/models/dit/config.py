"""Configuration of the diffusion transformers, with the keys of the published config.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Optional, Union

from opensora.errors import UserError
from opensora.models.model_config import ModelConfig

# Blocks with FIRST_SPARSE <= index < END_SPARSE have skiparse attention, fixed in the published model.
FIRST_SPARSE, END_SPARSE = 2, 30


@dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """The keys that the config.json of all transformers of Open-Sora-Plan have.

    Attributes:
        prediction_type, rescale_betas_zero_snr, v1_5_scheduler: the objective of the training (`ObjectiveOptions`), for
            samplers; None: unknown. Not in the published files; this project's trainer writes them.
    """

    num_attention_heads: int = 24
    attention_head_dim: int = 96
    in_channels: int = 8
    out_channels: Optional[int] = None
    num_layers: int = 32
    dropout: float = 0.0
    cross_attention_dim: int = 2304
    attention_bias: bool = True
    patch_size: int = 2
    patch_size_t: int = 1
    activation_fn: str = "gelu-approximate"
    norm_elementwise_affine: bool = False
    norm_eps: float = 1e-6
    caption_channels: int = 4096
    only_cross_attention: bool = False
    double_self_attention: bool = False
    upcast_attention: bool = False
    prediction_type: Optional[str] = None
    rescale_betas_zero_snr: Optional[bool] = None
    v1_5_scheduler: Optional[bool] = None

    release: ClassVar[str] = "Open-Sora-Plan"
    fixed: ClassVar[dict] = {
        "dropout": 0.0,
        "activation_fn": "gelu-approximate",
        "norm_elementwise_affine": False,
        "patch_size_t": 1,
        "only_cross_attention": False,
        "double_self_attention": False,
        "upcast_attention": False,
    }

    def __post_init__(self):
        for name, value in self.fixed.items():
            if getattr(self, name) != value:
                raise UserError(
                    f"{name} {getattr(self, name)!r} is not supported; all weights of {self.release} have {value!r}"
                )
        if self.out_channels is None:
            object.__setattr__(self, "out_channels", self.in_channels)

    @property
    def hidden_size(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    def attention_groups(self, block: int) -> int:
        """The number of groups of tokens that have separate self-attention in a block, counted from 0; 1: dense."""
        return 1


@dataclass(frozen=True)
class OpenSoraConfig(TransformerConfig):
    """Open-Sora-Plan v1.3.

    Attributes:
        sample_size_t, sample_size_h, sample_size_w: the latent size in training; published files have numbers or pairs.
    """

    sample_size_h: Union[int, Sequence[int], None] = None
    sample_size_w: Union[int, Sequence[int], None] = None
    sample_size_t: Optional[int] = None
    interpolation_scale_h: float = 1.0
    interpolation_scale_w: float = 1.0
    interpolation_scale_t: float = 1.0
    sparse1d: bool = False
    sparse_n: int = 2

    release: ClassVar[str] = "Open-Sora-Plan v1.3"

    def is_sparse(self, block: int) -> bool:
        """Whether block number `block`, counted from 0, has skiparse self-attention."""
        return self.sparse1d and FIRST_SPARSE <= block < END_SPARSE

    def attention_groups(self, block: int) -> int:
        return self.sparse_n if self.is_sparse(block) else 1


@dataclass(frozen=True)
class OpenSoraInpaintConfig(OpenSoraConfig):
    """`in_channels` is that of the noisy latents alone; the mask has `vae_scale_factor_t` channels, one for each frame
    of a latent frame.
    """

    vae_scale_factor_t: int = 4


@dataclass(frozen=True)
class Transformer2DConfig(TransformerConfig):
    """Open-Sora-Plan v1.0 to v1.2, which also have keys of diffusers' Transformer2DModel.

    Attributes:
        sample_size: height and width of the latents in training.
        attention_mode, norm_num_groups, num_embeds_ada_norm, use_linear_projection: no effect.
    """

    sample_size: Optional[Sequence[int]] = None
    norm_type: str = "ada_norm_single"
    norm_num_groups: int = 32
    num_embeds_ada_norm: Optional[int] = None
    num_vector_embeds: Optional[int] = None
    attention_type: str = "default"
    attention_mode: Optional[str] = None
    use_linear_projection: bool = False

    fixed: ClassVar[dict] = {
        **TransformerConfig.fixed,
        "norm_type": "ada_norm_single",
        "num_vector_embeds": None,
        "attention_type": "default",
    }

    def __post_init__(self):
        super().__post_init__()
        if self.sample_size is not None:  # graph mode needs a configuration that can be hashed, which a list cannot
            object.__setattr__(self, "sample_size", tuple(self.sample_size))

    def training_size(self) -> tuple[int, int]:
        """Height and width of the latents in training.

        Raises:
            UserError: the configuration has no such pair.
        """
        if self.sample_size is None or len(self.sample_size) != 2:
            raise UserError(
                f"sample_size {self.sample_size!r} is not the latents' height and width, which the positions depend on"
            )
        height, width = self.sample_size
        return height, width


_SIZE_2B = {
    "num_layers": 32,
    "num_attention_heads": 24,
    "attention_head_dim": 96,
    "caption_channels": 4096,
    "cross_attention_dim": 2304,
    "sparse1d": True,
    "sparse_n": 4,
}
# Published configurations by name, as keys of `OpenSoraConfig`.
PRESETS = {"OpenSoraT2V_v1_3-2B/122": _SIZE_2B, "OpenSoraInpaint_v1_3-2B/122": _SIZE_2B}
