"""The given frames of a video to make: pictures or a clip, where in the video they stand, and at which size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

import numpy as np

from opensora.datasets.masks import BLACK, MaskProcessor, MaskType
from opensora.datasets.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, VideoReader, read_image
from opensora.datasets.transforms import crop, limit_area, resize_crop, stride_box, to_float
from opensora.errors import UserError
from opensora.pipelines.sizes import MAX_HXW, MIN_HXW, SIZE_STEP

# How many images a mask type takes; None: any number.
IMAGES = {
    MaskType.t2iv: None,
    MaskType.i2v: 1,
    MaskType.transition: 2,
    MaskType.continuation: None,
    MaskType.random_temporal: None,
}


@dataclass(frozen=True)
class Condition:
    """`pixels`, uint8 (K, 3, H, W), are the frames `indices` of a video of `num_frames`; its others are unknown."""

    pixels: np.ndarray
    indices: tuple
    num_frames: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.pixels.shape[2:]

    def video(self) -> np.ndarray:
        """float32 (1, 3, T, H, W) in [-1, 1], black where unknown."""
        video = np.full((3, self.num_frames, *self.size), BLACK, np.float32)
        video[:, list(self.indices)] = to_float(self.pixels).swapaxes(0, 1)
        return video[None]

    def mask(self) -> np.ndarray:
        """float32 (1, 1, T, H, W): 0 where known."""
        mask = np.ones((self.num_frames, 1, 1), np.float32)
        mask[list(self.indices)] = 0
        return np.broadcast_to(mask, (1, 1, self.num_frames, *self.size))

    def keep(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Chunks of the made video, uint8 (1, t, H, W, 3) in order of time, with the known frames put back."""
        known, start = dict(zip(self.indices, self.pixels)), 0
        for chunk in chunks:
            chunk, end = chunk.copy(), start + chunk.shape[1]
            for index in known.keys() & range(start, end):
                chunk[0, index - start] = known[index].transpose(1, 2, 0)
            yield chunk
            start = end


@dataclass(frozen=True)
class Fit:
    """How frames of all sizes come to one: cut to its aspect, resized, then cut to multiples of 32."""

    height: int
    width: int

    @classmethod
    def common(cls, sizes: Sequence[tuple], max_hxw: int) -> Fit:
        """The smallest height and the smallest width of `sizes`, reduced in proportion to `max_hxw` pixels.

        Raises:
            UserError: a `max_hxw` the weights were not trained on, or frames smaller than 32 x 32.
        """
        if not MIN_HXW <= max_hxw <= MAX_HXW:
            raise UserError(
                f"max_hxw {max_hxw} should lie between {MIN_HXW} and {MAX_HXW}, which the weights were "
                f"trained on; any other size can be asked for with crop_for_hw, height and width"
            )
        height, width = limit_area(min(size[0] for size in sizes), min(size[1] for size in sizes), max_hxw)
        if min(height, width) < SIZE_STEP:
            raise UserError(
                f"the condition's files come to {height}x{width}: too small, {SIZE_STEP}x{SIZE_STEP} is "
                f"the least; with crop_for_hw, height and width they are enlarged"
            )
        return cls(height, width)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (3, H, W) -> (3, height, width)."""
        return crop(resize_crop(pixels, self.height, self.width), self._box)

    @property
    def size(self) -> tuple[int, int]:
        return self._box.height, self._box.width

    @property
    def _box(self):
        return stride_box(self.height, self.width, SIZE_STEP)


def read_condition(
    paths: Sequence[Union[str, Path]],
    num_frames: int,
    mask_type: Union[str, MaskType, None] = None,
    size: Optional[tuple] = None,
    max_hxw: int = MAX_HXW,
    indices: Optional[Sequence[int]] = None,
    seed: Union[int, Sequence[int]] = 1234,
) -> Condition:
    """Reads images, or one video, as frames of a video to make.

    Args:
        paths: images, or a single video, whose frames are taken from its start on.
        mask_type: which frames are known. None: one image is the first frame (i2v), two are the first and the last
            (transition), more stand evenly from the first to the last (random_temporal); of a video half is known
            (continuation).
        size: height and width, multiples of 32. None: see `Fit.common`.
        indices: the frames that images are, -1 being the last, instead of those that the mask type gives them.
        seed: of the choices that a mask type leaves open for a video.

    Raises:
        FileNotFoundError, UserError: files that cannot be read, or too many, too few, too short or too small ones.
    """
    paths = [Path(path) for path in paths]
    is_video = _check_kind(paths)
    if mask_type is None:
        mask_type = (
            MaskType.continuation
            if is_video
            else {1: MaskType.i2v, 2: MaskType.transition}.get(len(paths), MaskType.random_temporal)
        )
    mask_type = MaskType.of(mask_type)
    if is_video and indices is not None:
        raise UserError(f"{paths[0]}: which frames of a video are known follows from the mask type, not from indices")
    if is_video:
        with VideoReader(paths[0]) as reader:
            known = _video_indices(mask_type, num_frames, seed)
            fit = Fit(*size) if size else Fit.common([(reader.height, reader.width)], max_hxw)
            frames = (frame.transpose(2, 0, 1) for chunk in reader.chunks(known) for frame in chunk)
            return _condition(known, frames, fit, num_frames)
    known = _image_indices(mask_type, len(paths), num_frames, indices)
    images = [read_image(path).transpose(2, 0, 1) for path in paths]
    fit = Fit(*size) if size else Fit.common([image.shape[1:] for image in images], max_hxw)
    return _condition(known, images, fit, num_frames)


def condition_generator(seed: Union[int, Sequence[int]]) -> np.random.Generator:
    """NoiseSource of the condition, independent of the sampler's noise, which `default_rng(seed)` gives."""
    return np.random.default_rng(np.random.SeedSequence(seed).spawn(1)[0])


def _condition(known: Sequence[int], frames: Iterable[np.ndarray], fit: Fit, num_frames: int) -> Condition:
    pixels = np.empty((len(known), 3, *fit.size), np.uint8)
    for place, frame in zip(pixels, frames):
        place[...] = fit(frame)
    return Condition(pixels, tuple(known), num_frames)


def _check_kind(paths: Sequence[Path]) -> bool:
    """Whether the paths are a video; ValueError if they are neither one nor images."""
    for path in paths:
        if path.suffix.lower() not in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
            raise UserError(
                f"{path}: neither an image ({' '.join(IMAGE_SUFFIXES)}) nor a video "
                f"({' '.join(VIDEO_SUFFIXES)}) by its name"
            )
    videos = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
    if videos and len(paths) > 1:
        raise UserError(f"{', '.join(map(str, paths))}: a condition is one video or any number of images, not both")
    return bool(videos)


def _video_indices(mask_type: MaskType, num_frames: int, seed) -> list[int]:
    """The known frames; half of the video where the mask type leaves open how many."""
    mask = MaskProcessor(min_clear_ratio=0.5, max_clear_ratio=0.5)(mask_type, num_frames, condition_generator(seed))
    return np.flatnonzero(mask == 0).tolist()


def _image_indices(mask_type: MaskType, count: int, num_frames: int, indices: Optional[Sequence[int]]) -> list[int]:
    """The frames that `count` images are, in their order."""
    if indices is None:
        wanted = {**IMAGES, MaskType.clear: num_frames}[mask_type]
        if wanted not in (None, count):
            raise UserError(f"mask type {mask_type.name} takes {wanted} images for {num_frames} frames, not {count}")
        if mask_type is MaskType.random_temporal:
            indices = np.linspace(0, num_frames - 1, count, dtype=int).tolist()
        elif mask_type is MaskType.transition:
            indices = [0, num_frames - 1]
        else:
            indices = [] if mask_type is MaskType.t2iv else list(range(count))
    elif len(indices) != count:
        raise UserError(f"{len(indices)} indices for {count} images: there should be one for each")
    known = [index + num_frames if index < 0 else index for index in indices]
    if len(set(known)) < len(known) or not set(known) <= set(range(num_frames)):
        raise UserError(
            f"the images cannot be the frames {list(indices)} of {num_frames} frames: each should be "
            f"another one, from 0 to {num_frames - 1}"
        )
    return known
