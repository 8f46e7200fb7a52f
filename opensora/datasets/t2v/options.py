"""The options of the training data of the diffusion transformer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from typing import ClassVar, Optional

from opensora.config.options import option
from opensora.datasets.masks import MaskConfig
from opensora.errors import UserError

FORMS = ("data", "data_path", "video_data")  # the options that list the samples, of which one is given
OLDER_FORMS, JOINT = "data of v1.0 and v1.1", "images beside videos"  # groups of options
DROPPED = 0.1  # the default of `cfg`


@dataclass(frozen=True)
class T2VDataOptions:
    """Videos and images with captions; sizes in pixels, lengths in frames.

    Either every sample has one size (`force_resolution`: max_height x max_width), or each keeps its aspect ratio with
    min_hxw to max_hxw pixels.

    The samples are listed in `data`, or in one of the older forms: `data_path` of v1.0 and `video_data` of v1.1. The
    clips of these are `num_frames` frames at the rate of the file, or every `sample_rate`-th, whatever `train_fps` is.

    Args:
        cfg: None: the default of the model.
        total_batch_size: samples of an optimizer step.
        ae_stride_t, ae_stride: strides of the autoencoder in time and space.
        patch_size_t, patch_size: patch of the transformer in time and space.

    Raises:
        UserError: values that no sample can meet.
    """

    group: ClassVar[str] = "data"

    data: Optional[str] = option(None, "text file with a line `root,annotation.json` for each source")
    num_frames: int = option(65, "frames of a video, 4n+1; 1: images only")
    max_image_size: Optional[int] = option(None, "resize all samples to this height and width")
    max_height: int = option(320, "frame height with --force_resolution; otherwise batches are padded to it")
    max_width: int = option(240, "frame width with --force_resolution; otherwise batches are padded to it")
    force_resolution: bool = option(False, "resize all samples to max_height x max_width")
    max_hxw: Optional[int] = option(None, "maximum number of pixels of a frame, without --force_resolution")
    min_hxw: Optional[int] = option(None, "minimum number of pixels of a frame; default: a quarter of --max_hxw")
    hw_stride: int = option(32, "height and width are multiples of it")
    train_fps: int = option(24, "frame rate that videos are resampled to")
    speed_factor: float = option(1.0, "maximum speed-up of videos that have more frames than needed; 1: none")
    drop_short_ratio: float = option(1.0, "probability of dropping a video with fewer than --num_frames frames")
    group_data: bool = option(False, "all samples of a batch have one size", flags=("--group_frame",))
    total_batch_size: int = 1
    min_steps_per_size: int = option(
        4, "leave out sizes with samples for fewer optimizer steps than this; 0: use all sizes, and repeat samples"
    )
    cfg: Optional[float] = option(
        None, "probability of dropping a caption, for classifier-free guidance; default: 0.1, for LatteT2V 0"
    )
    model_max_length: int = option(512, "maximum number of tokens of a caption")
    text_embed_cache: bool = option(
        False,
        "use the embeddings of sample_text_embed.py, named in --data, instead of a text encoder",
        takes_value=True,
    )
    cache_dir: str = option("./cache_dir", "folder for the index of the data and the list of broken samples")
    data_path: Optional[str] = option(
        None, "instead of --data: json list of videos with `path` and `cap`, as for v1.0", group=OLDER_FORMS
    )
    video_data: Optional[str] = option(
        None,
        "instead of --data: text file with a line `folder,annotation.json` for each source, as for v1.1",
        group=OLDER_FORMS,
    )
    sample_rate: int = option(1, "with --data_path and --video_data: take every n-th frame", group=OLDER_FORMS)
    use_image_num: int = option(0, "images that are trained beside each video", group=JOINT)
    use_img_from_vid: bool = option(False, "these images are frames of the video", group=JOINT)
    image_data: Optional[str] = option(
        None, "or they are those of this text file, with a line `folder,annotation.json` for each source", group=JOINT
    )
    sp_size: int = 1  # processes that share a video
    ae_stride_t: int = 4
    ae_stride: int = 8
    patch_size_t: int = 1
    patch_size: int = 2

    def __post_init__(self):
        self._check_forms()
        if self.max_image_size is not None:
            for name in ("max_height", "max_width"):
                object.__setattr__(self, name, self.max_image_size)
            object.__setattr__(self, "force_resolution", True)
        self._check_images()
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
                "give max_hxw, the most pixels of a frame, or force_resolution with max_height and max_width, or "
                "max_image_size"
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
        if self.min_steps_per_size < 0:
            raise UserError(f"min_steps_per_size {self.min_steps_per_size}: should be 0 or more")
        for name in ("cfg", "drop_short_ratio"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name} {value}: a probability should be between 0 and 1")

    def _check_forms(self) -> None:
        given = [name for name in FORMS if getattr(self, name) is not None]
        if len(given) != 1:
            raise UserError(f"give the training data by one of {', '.join(f'--{name}' for name in FORMS)}")
        if self.sample_rate < 1 or (self.sample_rate > 1 and not self.is_older):
            raise UserError(
                f"--sample_rate {self.sample_rate}: should be 1 or more, and with --data it must be 1: the frame rate "
                "of the samples is --train_fps"
            )

    def _check_images(self) -> None:
        if self.is_older and not self.force_resolution:
            raise UserError(f"--{self.form}: samples of v1.0 and v1.1 have one size: give --max_image_size")
        sources = (self.image_data is not None) + self.use_img_from_vid
        if self.use_image_num < 0 or sources != (self.use_image_num > 0):
            raise UserError(
                f"--use_image_num {self.use_image_num}: images beside each video need either --image_data or "
                "--use_img_from_vid, and these need --use_image_num 1 or more"
            )
        if self.use_image_num and not self.force_resolution:
            raise UserError(
                f"--use_image_num {self.use_image_num}: images and videos need one size: --max_image_size, or "
                "--force_resolution with --max_height and --max_width"
            )

    @property
    def form(self) -> str:
        """The name of the option that lists the samples."""
        return next(name for name in FORMS if getattr(self, name) is not None)

    @property
    def file(self) -> str:
        """The file that lists the samples."""
        return getattr(self, self.form)

    @property
    def is_older(self) -> bool:
        """Whether the samples are those of v1.0 or v1.1."""
        return self.form != "data"

    @property
    def dropped(self) -> float:
        """The probability of dropping a caption."""
        return DROPPED if self.cfg is None else self.cfg

    def of_images(self) -> T2VDataOptions:
        """The options of the images in `image_data`."""
        return replace(
            self,
            data=None,
            data_path=None,
            video_data=self.image_data,
            image_data=None,
            use_image_num=0,
            use_img_from_vid=False,
            num_frames=1,
            sample_rate=1,
            min_steps_per_size=0,
        )

    @property
    def min_samples(self) -> int:
        """The fewest samples of a size that is used."""
        return max(1, self.min_steps_per_size * self.total_batch_size)

    @property
    def area_limit(self) -> int:
        """The most pixels of a frame; only without force_resolution."""
        assert self.max_hxw is not None, "max_hxw is required without force_resolution"
        return self.max_hxw

    @property
    def smallest_area(self) -> int:
        """The minimum number of pixels; without `max_hxw` there is none."""
        return (self.max_hxw or 0) // 4 if self.min_hxw is None else self.min_hxw


@dataclass(frozen=True)
class InpaintDataOptions(T2VDataOptions):
    """Options with masks of the conditioning frames.

    Raises:
        UserError: a ratio out of range, or one that the cache of embeddings cannot serve.
    """

    mask: MaskConfig = field(default_factory=MaskConfig)
    default_text_ratio: float = option(
        0.5, "share of the dropped captions (--cfg) that a standard sentence replaces", group="conditioning frames"
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.default_text_ratio <= 1:
            raise UserError(f"default_text_ratio {self.default_text_ratio}: a probability should be between 0 and 1")
        if self.default_text_ratio and self.text_embed_cache:
            raise UserError(
                f"default_text_ratio {self.default_text_ratio} needs a text encoder; with text_embed_cache it must be 0"
            )
