"""Masks of the inpaint model: which frames of a video are given (0), and which it has to make (1).

A mask is float32, (T,) where a frame is given as a whole, as all types here have it, else (B, 1, T, H, W). Needs no
MindSpore, so that the processes that load data can use it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Optional, Union

import numpy as np
import yaml

from opensora.config.options import check_choice
from opensora.errors import UserError

BLACK = -1.0  # of pixels in [-1, 1]: what the model sees where nothing is given


class MaskType(Enum):
    """Which frames are given."""

    t2iv = "none: text to video or image"
    i2v = "the first"
    transition = "the first and the last"
    continuation = "some number from the start on"
    clear = "all"
    random_temporal = "a random choice"

    @classmethod
    def of(cls, name: Union[str, MaskType]) -> MaskType:
        """Raises UserError, with the known names, for one that is none of them."""
        if isinstance(name, cls):
            return name
        check_choice("mask type", name, cls.__members__)
        return cls[name]


IMAGE_TYPES = (MaskType.t2iv, MaskType.clear)  # an image has but one frame


@dataclass(frozen=True)
class MaskConfig:
    """How often training draws each type; ratios are normalised to a sum of 1, and if all are 0, each is as likely.

    Raises:
        UserError: an unknown type, one that images cannot have, or numbers that are no ratios.
    """

    min_clear_ratio: float = 0.0  # share of the frames that continuation and random_temporal give
    max_clear_ratio: float = 1.0
    mask_type_ratio_dict_video: Mapping[str, float] = field(
        default_factory=lambda: {
            "t2iv": 1,
            "i2v": 8,
            "transition": 8,
            "continuation": 2,
            "clear": 0,
            "random_temporal": 1,
        }
    )
    mask_type_ratio_dict_image: Mapping[str, float] = field(default_factory=lambda: {"t2iv": 0, "clear": 0})

    def __post_init__(self):
        MaskProcessor(self.min_clear_ratio, self.max_clear_ratio)
        for name, allowed in (
            ("mask_type_ratio_dict_video", tuple(MaskType)),
            ("mask_type_ratio_dict_image", IMAGE_TYPES),
        ):
            object.__setattr__(self, name, _normalised(name, getattr(self, name), allowed))

    @classmethod
    def from_file(cls, path: Union[str, Path]) -> MaskConfig:
        """Reads a yaml file such as scripts/train_configs/mask_config.yaml; what it leaves out has the defaults above.

        Raises:
            FileNotFoundError: no such file.
            UserError: no yaml, an unknown key, or values that are refused.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except yaml.YAMLError as error:
            raise UserError(f"{path}: not a yaml file: {error}") from error
        known = [item.name for item in fields(cls)]
        unknown = [key for key in values if key not in known] if isinstance(values, dict) else [values]
        if unknown:
            raise UserError(f"{path}: unknown key {unknown[0]!r}; known are {', '.join(known)}")
        try:
            return cls(**values)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from error

    def draw(self, is_image: bool, rng: np.random.Generator) -> MaskType:
        """A random type, as often as the ratios have it."""
        ratios = self.mask_type_ratio_dict_image if is_image else self.mask_type_ratio_dict_video
        return MaskType.of(str(rng.choice(list(ratios), p=list(ratios.values()))))


class MaskProcessor:
    """Makes masks. Where a type leaves the number of given frames open, it lies between the two ratios of all frames.

    Raises:
        UserError: ratios that are not 0 <= min <= max <= 1.
    """

    def __init__(self, min_clear_ratio: float = 0.0, max_clear_ratio: float = 1.0):
        if (
            not all(map(_is_number, (min_clear_ratio, max_clear_ratio)))
            or not 0 <= min_clear_ratio <= max_clear_ratio <= 1
        ):
            raise UserError(
                f"min_clear_ratio {min_clear_ratio!r} and max_clear_ratio {max_clear_ratio!r}: should be "
                f"0 <= min <= max <= 1"
            )
        self.min_clear_ratio, self.max_clear_ratio = min_clear_ratio, max_clear_ratio

    def __call__(self, mask_type: MaskType, num_frames: int, rng: np.random.Generator) -> np.ndarray:
        """The mask (T,) of a video of `num_frames` frames."""
        mask = np.ones(num_frames, np.float32)
        if mask_type is MaskType.i2v:
            mask[0] = 0
        elif mask_type is MaskType.transition:
            mask[[0, -1]] = 0
        elif mask_type is MaskType.continuation:
            mask[: self._how_many(num_frames, rng)] = 0
        elif mask_type is MaskType.clear:
            mask[:] = 0
        elif mask_type is MaskType.random_temporal:
            mask[rng.choice(num_frames, self._how_many(num_frames, rng), replace=False)] = 0
        return mask

    def _how_many(self, num_frames: int, rng: np.random.Generator) -> int:
        return int(
            rng.integers(
                math.floor(num_frames * self.min_clear_ratio),
                math.ceil(num_frames * self.max_clear_ratio),
                endpoint=True,
            )
        )


def mask_pixels(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Pixels (..., T, H, W) in [-1, 1] with black where `mask` (T,), or one that broadcasts to pixels, is 1."""
    mask = mask[:, None, None] if mask.ndim == 1 else mask
    return np.where(mask < 0.5, pixels, np.float32(BLACK))


class MaskCompressor:
    """Masks at the size of latents: the frames of a latent frame become channels, space shrinks (bilinear)."""

    def __init__(self, ae_stride_h: int = 8, ae_stride_w: int = 8, ae_stride_t: int = 4):
        self.strides = ae_stride_h, ae_stride_w
        self.ae_stride_t = ae_stride_t

    def __call__(self, mask: np.ndarray) -> np.ndarray:
        """(B, 1, T, H, W) -> (B, s, t, H/8, W/8), s being the stride in time.

        Of an odd number of frames the first fills a latent frame by itself, s times; t = 1 + (T - 1) / s.
        """
        import cv2  # takes long to import, and is not needed to check the options of a run

        batch, _, frames, height, width = mask.shape
        size = height // self.strides[0], width // self.strides[1]
        small = np.stack(
            [
                cv2.resize(np.ascontiguousarray(frame, np.float32), size[::-1], interpolation=cv2.INTER_LINEAR)
                for frame in mask.reshape(-1, height, width)
            ]
        ).reshape(batch, frames, *size)
        if frames % 2:
            small = np.concatenate([np.repeat(small[:, :1], self.ae_stride_t, 1), small[:, 1:]], 1)
        return small.reshape(batch, -1, self.ae_stride_t, *size).swapaxes(1, 2)


def add_noise_to_condition(
    masked_pixels: np.ndarray, mask: np.ndarray, rng: np.random.Generator, noise_strength: Optional[float] = None
) -> np.ndarray:
    """Gaussian noise on the given frames: what moves in a video hides how sharp a still picture is.

    Its standard deviation is log-normal, one draw a sample: in training (no `noise_strength`) about exp(-3), and one
    batch in twenty gets none; at inference `noise_strength` within a percent.

    Args:
        masked_pixels: (B, 3, T, H, W). mask: (B, 1, T, H, W), or what broadcasts to it.
    """
    if noise_strength == 0 or noise_strength is None and rng.random() < 0.05:
        return masked_pixels
    mean, std = (-3.0, 0.5) if noise_strength is None else (math.log(noise_strength), 0.01)
    sigma = np.exp(mean + std * rng.standard_normal(len(masked_pixels), dtype=np.float32)).reshape(-1, 1, 1, 1, 1)
    noise = sigma * rng.standard_normal(masked_pixels.shape, dtype=np.float32)
    return masked_pixels + np.where(mask < 0.5, noise, np.float32(0))


def check_noise_strength(noise_strength: float) -> None:
    """Raises UserError unless it lies between 0 (no noise) and 1."""
    if not 0 <= noise_strength <= 1:
        raise UserError(f"noise_strength {noise_strength} should lie between 0 and 1")


def _normalised(name: str, ratios: Mapping[str, float], allowed: tuple) -> dict[str, float]:
    names = [mask_type.name for mask_type in allowed]
    if not isinstance(ratios, Mapping) or not ratios:
        raise UserError(f"{name} should give a ratio to some of {', '.join(names)}, not {ratios!r}")
    for key, value in ratios.items():
        check_choice(f"{name}:", key, names)
        if not _is_number(value) or value < 0:
            raise UserError(f"{name}: {key} {value!r} should be a number of 0 or more")
    total = sum(ratios.values())
    return {key: value / total if total else 1 / len(ratios) for key, value in ratios.items()}


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
