"""Options of the training data of the diffusion transformer."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Optional

from opensora.errors import UserError


@dataclass(frozen=True)
class T2VDataOptions:
    """The published names of the flags; sizes in pixels, lengths in frames.

    Either every sample has one size (`force_resolution`: max_height x max_width), or each keeps its aspect with
    min_hxw to max_hxw pixels (`min_hxw` is a quarter of `max_hxw` if it is not given).

    Raises:
        UserError: values that no sample could meet.
    """

    data: str  # the data file, see `annotations`
    num_frames: int = 65  # frames of a video: ae_stride_t * n + 1
    max_height: int = 320  # with force_resolution the size, else what batches are padded to
    max_width: int = 240
    force_resolution: bool = False
    max_hxw: Optional[int] = None
    min_hxw: Optional[int] = None
    hw_stride: int = 32  # sides are multiples of it
    train_fps: int = 24  # videos are resampled to this rate
    speed_factor: float = 1.0  # videos with frames to spare run up to this much faster
    drop_short_ratio: float = 1.0  # probability that a video with too few frames is left out
    group_data: bool = False  # batches of one size
    total_batch_size: int = 1  # samples an optimizer step; sizes with fewer than 4 steps are left out
    cfg: float = 0.1  # probability that a caption is left out
    model_max_length: int = 512  # tokens
    text_embed_cache: bool = False  # embeddings of sample_text_embed.py instead of tokens
    cache_dir: str = "./cache_dir"  # for the index and the list of broken samples
    sp_size: int = 1  # processes that share a video
    ae_stride_t: int = 4  # the autoencoder's strides and the transformer's patch
    ae_stride: int = 8
    patch_size_t: int = 1
    patch_size: int = 2

    def __post_init__(self):
        if self.num_frames < 1 or (self.num_frames - 1) % self.ae_stride_t:
            raise UserError(f"num_frames {self.num_frames}: should be 1 + a multiple of {self.ae_stride_t}")
        latent_frames = (self.num_frames - 1) // self.ae_stride_t + 1
        if self.num_frames > 1 and latent_frames % self.sp_size:
            raise UserError(
                f"num_frames {self.num_frames} gives {latent_frames} latent frames, which cannot be split "
                f"among sp_size {self.sp_size} processes"
            )
        if not self.force_resolution and self.max_hxw is None:
            raise UserError(
                "give max_hxw, the most pixels of a frame, or force_resolution with max_height and max_width"
            )
        sides = (self.max_height, self.max_width) if self.force_resolution else (self.hw_stride,)
        if any(side <= 0 or side % self.ae_stride for side in sides):
            name = "max_height and max_width" if self.force_resolution else "hw_stride"
            raise UserError(f"{name} {', '.join(map(str, sides))}: should be multiples of {self.ae_stride}")
        if self.max_hxw is not None and not 0 < self.smallest_area <= self.max_hxw:
            raise UserError(f"min_hxw {self.min_hxw}, max_hxw {self.max_hxw}: should be positive, in this order")
        if not 1 <= self.speed_factor < inf or not self.train_fps > 0:
            raise UserError(
                f"speed_factor {self.speed_factor}, train_fps {self.train_fps}: the first should be at "
                f"least 1, the second positive"
            )
        for name in ("cfg", "drop_short_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} {getattr(self, name)}: a probability should be between 0 and 1")

    @property
    def area_limit(self) -> int:
        """The most pixels of a frame; only without force_resolution."""
        assert self.max_hxw is not None, "max_hxw is required without force_resolution"
        return self.max_hxw

    @property
    def smallest_area(self) -> int:
        return self.area_limit // 4 if self.min_hxw is None else self.min_hxw
