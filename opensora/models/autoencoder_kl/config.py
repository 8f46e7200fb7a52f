"""Configuration of the autoencoder, with the keys of diffusers' config.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Optional

from opensora.errors import UserError
from opensora.models.model_config import ModelConfig


@dataclass(frozen=True)
class AutoencoderKLConfig(ModelConfig):
    """Fields are the keys of config.json, and `micro_batch_size`.

    Attributes:
        micro_batch_size: number of frames processed at a time; None: all. It changes memory use, not the result.

    Raises:
        UserError: a value that this implementation does not support.
    """

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: Sequence[str] = ("DownEncoderBlock2D",)
    up_block_types: Sequence[str] = ("UpDecoderBlock2D",)
    block_out_channels: Sequence[int] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    mid_block_add_attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    micro_batch_size: Optional[int] = None

    # Open-Sora v1.1 scales latents by 0.18215 and ignores `scaling_factor`.
    ignored: ClassVar[tuple] = (
        "sample_size",
        "scaling_factor",
        "shift_factor",
        "latents_mean",
        "latents_std",
        "force_upcast",
        "cache_dir",
        "local_files_only",
    )
    fixed: ClassVar[dict] = {
        "act_fn": "silu",
        "mid_block_add_attention": True,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
    }

    def __post_init__(self):
        for name, value in self.fixed.items():
            if getattr(self, name) != value:
                raise UserError(
                    f"{name} {getattr(self, name)!r} is not supported; the autoencoders of Stable Diffusion 1 "
                    f"and 2 have {value!r}"
                )
        count = len(self.block_out_channels)
        for name, known in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            if list(getattr(self, name)) != [known] * count:
                raise UserError(
                    f"{name} {list(getattr(self, name))} is not supported: block_out_channels has {count} values, "
                    f"so it must be {count} times {known!r}"
                )
        wrong = [channels for channels in self.block_out_channels if channels % self.norm_num_groups]
        if wrong:
            raise UserError(
                f"block_out_channels {wrong[0]} is not a multiple of norm_num_groups {self.norm_num_groups}"
            )
        if self.micro_batch_size is not None and self.micro_batch_size < 1:
            raise UserError(f"micro_batch_size {self.micro_batch_size} must be 1 or more; None: all frames at once")

    @property
    def spatial_stride(self) -> int:
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    def patch_size(self) -> tuple[int, int, int]:
        """Pixels of a latent along T, H, W."""
        return 1, self.spatial_stride, self.spatial_stride

    def latent_size(self, video_size: Sequence[Optional[int]]) -> tuple:
        """(T, H, W) of a video -> (T, H // 8, W // 8) of its latents; None (unknown) remains None."""
        return tuple(size if size is None else size // stride for size, stride in zip(video_size, self.patch_size))
