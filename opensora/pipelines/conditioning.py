"""Conditioning frames: reading them from images or a video, their positions in the generated video, and their size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional, Union

import numpy as np

from opensora.datasets.masks import BLACK, MaskProcessor, MaskType
from opensora.datasets.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, VideoReader, read_image
from opensora.datasets.transforms import Box, crop, limit_area, resize_crop, stride_box, to_float
from opensora.errors import UserError
from opensora.pipelines.sizes import SIZE_STEP

MIN_HXW, MAX_HXW = 102400, 236544  # pixels per frame; the range that the published weights were trained on

# Number of images that a mask type takes; None: any number.
IMAGE_COUNTS = {
    MaskType.t2iv: None,
    MaskType.i2v: 1,
    MaskType.transition: 2,
    MaskType.continuation: None,
    MaskType.random_temporal: None,
}


@dataclass(frozen=True)
class ConditioningFrames:
    """`pixels`, uint8 (K, 3, H, W), are the frames `indices` of a video of `num_frames`; the others are generated."""

    pixels: np.ndarray
    indices: tuple[int, ...]
    num_frames: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        _, _, height, width = self.pixels.shape
        return height, width

    def video(self) -> np.ndarray:
        """float32 (1, 3, T, H, W) in [-1, 1]; frames to generate are black."""
        video = np.full((3, self.num_frames, *self.size), BLACK, np.float32)
        video[:, list(self.indices)] = to_float(self.pixels).swapaxes(0, 1)
        return video[None]

    def mask(self) -> np.ndarray:
        """float32 (1, 1, T, H, W): 0 for conditioning frames, 1 for frames to generate."""
        mask = np.ones((self.num_frames, 1, 1), np.float32)
        mask[list(self.indices)] = 0
        return np.broadcast_to(mask, (1, 1, self.num_frames, *self.size))

    def keep(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Chunks of the generated video, uint8 (1, t, H, W, 3), with the conditioning frames copied into them."""
        frames, start = dict(zip(self.indices, self.pixels)), 0
        for chunk in chunks:
            chunk, end = chunk.copy(), start + chunk.shape[1]
            for index in frames.keys() & range(start, end):
                chunk[0, index - start] = frames[index].transpose(1, 2, 0)
            yield chunk
            start = end


@dataclass(frozen=True)
class Fit:
    """Brings frames of any size to one: crop to its aspect ratio, resize, crop to multiples of 32."""

    height: int
    width: int

    @classmethod
    def common(cls, sizes: Sequence[tuple], max_hxw: int) -> Fit:
        """The smallest height and the smallest width of `sizes`, scaled down to `max_hxw` pixels if they exceed it.

        Raises:
            UserError: a `max_hxw` that the weights were not trained on, or frames smaller than 32 x 32.
        """
        if not MIN_HXW <= max_hxw <= MAX_HXW:
            raise UserError(
                f"max_hxw {max_hxw} should be between {MIN_HXW} and {MAX_HXW}, the range that the weights were "
                f"trained on; for other sizes use crop_for_hw, height and width"
            )
        height, width = limit_area(min(size[0] for size in sizes), min(size[1] for size in sizes), max_hxw)
        if min(height, width) < SIZE_STEP:
            raise UserError(
                f"the size of the conditioning files is {height}x{width}: too small, the minimum is "
                f"{SIZE_STEP}x{SIZE_STEP}; with crop_for_hw, height and width they are enlarged"
            )
        return cls(height, width)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (3, H, W) -> (3, height, width)."""
        return crop(resize_crop(pixels, self.height, self.width), self._box)

    @property
    def size(self) -> tuple[int, int]:
        return self._box.height, self._box.width

    @property
    def _box(self) -> Box:
        return stride_box(self.height, self.width, SIZE_STEP)


def read_conditioning_frames(
    paths: Sequence[Union[str, Path]],
    num_frames: int,
    mask_type: Union[str, MaskType, None] = None,
    size: Optional[tuple] = None,
    max_hxw: int = MAX_HXW,
    indices: Optional[Sequence[int]] = None,
    seed: Union[int, Sequence[int]] = 1234,
) -> ConditioningFrames:
    """Reads images, or one video, as conditioning frames of a video of `num_frames`.

    Args:
        paths: images, or a single video, whose frames are used from its start.
        mask_type: the positions of the conditioning frames. None: one image is the first frame (i2v), two are the first
            and the last (transition), more are spaced evenly from the first to the last (random_temporal); a video
            conditions half of the frames (continuation).
        size: height and width, multiples of 32. None: see `Fit.common`.
        indices: frame indices of the images, -1 for the last frame; they override the mask type.
        seed: of the random choices of a mask type for a video.

    Raises:
        FileNotFoundError, UserError: unreadable files, or too many, too few, too short or too small ones.
    """
    files = [Path(path) for path in paths]
    is_video = _is_video(files)
    if mask_type is None:
        mask_type = (
            MaskType.continuation
            if is_video
            else {1: MaskType.i2v, 2: MaskType.transition}.get(len(files), MaskType.random_temporal)
        )
    mask_type = MaskType.of(mask_type)
    if is_video and indices is not None:
        raise UserError(f"{files[0]}: indices are for images; a video's conditioning frames follow from the mask type")
    if is_video:
        with VideoReader(files[0]) as reader:
            positions = _video_indices(mask_type, num_frames, seed)
            fit = Fit(*size) if size else Fit.common([(reader.height, reader.width)], max_hxw)
            frames = (frame.transpose(2, 0, 1) for chunk in reader.chunks(positions) for frame in chunk)
            return _resize_frames(positions, frames, fit, num_frames)
    positions = _image_indices(mask_type, len(files), num_frames, indices)
    images = [read_image(path).transpose(2, 0, 1) for path in files]
    fit = Fit(*size) if size else Fit.common([image.shape[1:] for image in images], max_hxw)
    return _resize_frames(positions, images, fit, num_frames)


def conditioning_generator(seed: Union[int, Sequence[int]]) -> np.random.Generator:
    """The random generator for conditioning, independent of the sampler's noise, which uses `default_rng(seed)`."""
    return np.random.default_rng(np.random.SeedSequence(seed).spawn(1)[0])


def _resize_frames(
    indices: Sequence[int], frames: Iterable[np.ndarray], fit: Fit, num_frames: int
) -> ConditioningFrames:
    pixels = np.empty((len(indices), 3, *fit.size), np.uint8)
    for resized, frame in zip(pixels, frames):
        resized[...] = fit(frame)
    return ConditioningFrames(pixels, tuple(indices), num_frames)


def _is_video(paths: Sequence[Path]) -> bool:
    """Whether the paths are one video, not images.

    Raises:
        UserError: other files, or a video together with other files.
    """
    for path in paths:
        if path.suffix.lower() not in IMAGE_SUFFIXES + VIDEO_SUFFIXES:
            raise UserError(
                f"{path}: the suffix is neither that of an image ({' '.join(IMAGE_SUFFIXES)}) nor of a video "
                f"({' '.join(VIDEO_SUFFIXES)})"
            )
    videos = [path for path in paths if path.suffix.lower() in VIDEO_SUFFIXES]
    if videos and len(paths) > 1:
        raise UserError(f"{', '.join(map(str, paths))}: conditioning takes one video or any number of images, not both")
    return bool(videos)


def _video_indices(mask_type: MaskType, num_frames: int, seed) -> list[int]:
    """The conditioning frames; half of the video if the mask type does not determine their number."""
    mask = MaskProcessor(min_clear_ratio=0.5, max_clear_ratio=0.5)(mask_type, num_frames, conditioning_generator(seed))
    return np.flatnonzero(mask == 0).tolist()


def _image_indices(mask_type: MaskType, count: int, num_frames: int, indices: Optional[Sequence[int]]) -> list[int]:
    """The frame indices of `count` images, in their order."""
    if indices is None:
        needed = {**IMAGE_COUNTS, MaskType.clear: num_frames}[mask_type]
        if needed not in (None, count):
            raise UserError(f"mask type {mask_type.name} takes {needed} images for {num_frames} frames, not {count}")
        if mask_type is MaskType.random_temporal:
            indices = np.linspace(0, num_frames - 1, count, dtype=int).tolist()
        elif mask_type is MaskType.transition:
            indices = [0, num_frames - 1]
        else:
            indices = [] if mask_type is MaskType.t2iv else list(range(count))
    elif len(indices) != count:
        raise UserError(f"{len(indices)} indices for {count} images: give one per image")
    frames = [index + num_frames if index < 0 else index for index in indices]
    if len(set(frames)) < len(frames) or not set(frames) <= set(range(num_frames)):
        raise UserError(
            f"invalid indices {list(indices)} for {num_frames} frames: give each image a different index, "
            f"from 0 to {num_frames - 1}"
        )
    return frames
