"""Masks of the inpaint model: 0 for conditioning frames, 1 for frames to generate.

A mask is float32: (T,) for the types below, which mask whole frames, or (B, 1, T, H, W) in general. This module must
not import MindSpore, because data workers use it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import Optional, Union

import numpy as np

from opensora.config.options import check_choice
from opensora.errors import UserError
from opensora.utils.text_files import read_yaml

BLACK = -1.0  # value of masked pixels, in [-1, 1]


class MaskType(Enum):
    """Which frames are conditioning frames."""

    t2iv = "none: text to video or image"
    i2v = "the first frame"
    transition = "the first and the last frame"
    continuation = "the first frames, a random number of them"
    clear = "all frames"
    random_temporal = "a random subset"

    @classmethod
    def of(cls, name: Union[str, MaskType]) -> MaskType:
        """The type of this name; raises UserError with the valid names for an unknown one."""
        if isinstance(name, MaskType):
            return name
        check_choice("mask type", name, cls.__members__)
        return cls[name]


IMAGE_TYPES = (MaskType.t2iv, MaskType.clear)  # the only possible types for a single frame


@dataclass(frozen=True)
class MaskConfig:
    """Probabilities of the mask types in training, normalized to a sum of 1; if all are 0, they are equal.

    Raises:
        UserError: an unknown type, a type that is impossible for images, or invalid ratios.
    """

    min_clear_ratio: float = 0.0  # fraction of conditioning frames in continuation and random_temporal
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
            object.__setattr__(self, name, _normalize(name, getattr(self, name), allowed))

    @classmethod
    def from_file(cls, path: Union[str, Path]) -> MaskConfig:
        """Reads a yaml file such as scripts/train_configs/mask_config.yaml; missing keys keep the defaults above.

        Raises:
            FileNotFoundError: no such file.
            UserError: invalid yaml, an unknown key or an invalid value.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        values = read_yaml(path) or {}
        known = [item.name for item in fields(cls)]
        unknown = [key for key in values if key not in known] if isinstance(values, dict) else [values]
        if unknown:
            raise UserError(f"{path}: unknown key {unknown[0]!r:.100}; valid keys are {', '.join(known)}")
        try:
            return cls(**values)
        except ValueError as error:
            raise UserError(f"{path}: {error!s:.500}") from error

    def draw(self, is_image: bool, rng: np.random.Generator) -> MaskType:
        """Draws a random type with the configured probabilities."""
        ratios = self.mask_type_ratio_dict_image if is_image else self.mask_type_ratio_dict_video
        return MaskType.of(str(rng.choice(list(ratios), p=list(ratios.values()))))


class MaskProcessor:
    """Makes masks.

    Args:
        min_clear_ratio: least fraction of conditioning frames, for continuation and random_temporal.
        max_clear_ratio: largest fraction.

    Raises:
        UserError: unless 0 <= min <= max <= 1.
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
        """A mask (T,) for a video of `num_frames` frames."""
        mask = np.ones(num_frames, np.float32)
        if mask_type is MaskType.i2v:
            mask[0] = 0
        elif mask_type is MaskType.transition:
            mask[[0, -1]] = 0
        elif mask_type is MaskType.continuation:
            mask[: self._draw_count(num_frames, rng)] = 0
        elif mask_type is MaskType.clear:
            mask[:] = 0
        elif mask_type is MaskType.random_temporal:
            mask[rng.choice(num_frames, self._draw_count(num_frames, rng), replace=False)] = 0
        return mask

    def _draw_count(self, num_frames: int, rng: np.random.Generator) -> int:
        return int(
            rng.integers(
                math.floor(num_frames * self.min_clear_ratio),
                math.ceil(num_frames * self.max_clear_ratio),
                endpoint=True,
            )
        )


def mask_pixels(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Blackens pixels (..., T, H, W) in [-1, 1] where `mask` is 1; the mask is (T,) or broadcasts to `pixels`."""
    mask = mask[:, None, None] if mask.ndim == 1 else mask
    return np.where(mask < 0.5, pixels, np.float32(BLACK))


def condition_pixels(
    pixels: np.ndarray, masks: np.ndarray, rngs: Optional[Sequence[np.random.Generator]] = None
) -> np.ndarray:
    """The conditioning frames of videos (B, 3, T, H, W) in [-1, 1]; the other frames are black.

    Args:
        masks: (B, 1, T, 1, 1).
        rngs: one for each video, for `add_noise_to_condition`; None: no noise.
    """
    known = mask_pixels(pixels, masks)
    if rngs is None:
        return known
    return np.concatenate(
        [add_noise_to_condition(known[i : i + 1], masks[i : i + 1], rng) for i, rng in enumerate(rngs)]
    )


class MaskCompressor:
    """Resizes masks to latents: bilinear in space; the frames of each latent frame become channels."""

    def __init__(self, ae_stride_h: int = 8, ae_stride_w: int = 8, ae_stride_t: int = 4):
        self.strides = ae_stride_h, ae_stride_w
        self.ae_stride_t = ae_stride_t

    def __call__(self, mask: np.ndarray) -> np.ndarray:
        """(B, 1, T, H, W) -> (B, s, t, H/8, W/8), where s is the stride in time.

        If T is odd, the first frame is repeated s times to fill a latent frame, and t = 1 + (T - 1) / s.
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
    """Adds Gaussian noise to the conditioning frames: still images are sharper than the frames of training videos.

    The standard deviation is log-normal and drawn once per sample. In training (noise_strength None) its median is
    exp(-3), and one batch in twenty gets no noise. In inference it is `noise_strength` within about one percent.

    Args:
        masked_pixels: (B, 3, T, H, W).
        mask: (B, 1, T, H, W), or broadcastable to it.
    """
    if noise_strength == 0 or noise_strength is None and rng.random() < 0.05:
        return masked_pixels
    mean, std = (-3.0, 0.5) if noise_strength is None else (math.log(noise_strength), 0.01)
    sigma = np.exp(mean + std * rng.standard_normal(len(masked_pixels), dtype=np.float32)).reshape(-1, 1, 1, 1, 1)
    noise = sigma * rng.standard_normal(masked_pixels.shape, dtype=np.float32)
    return masked_pixels + np.where(mask < 0.5, noise, np.float32(0))


def check_noise_strength(noise_strength: float) -> None:
    """Raises UserError unless `noise_strength` is in [0, 1]; 0 means no noise."""
    if not 0 <= noise_strength <= 1:
        raise UserError(f"noise_strength {noise_strength} should be between 0 and 1")


def _normalize(name: str, ratios: Mapping[str, float], allowed: tuple) -> dict[str, float]:
    names = [mask_type.name for mask_type in allowed]
    if not isinstance(ratios, Mapping) or not ratios:
        raise UserError(f"{name} should map some of {', '.join(names)} to ratios, not {ratios!r}")
    for key, value in ratios.items():
        check_choice(f"{name}:", key, names)
        if not _is_number(value) or value < 0:
            raise UserError(f"{name}: {key} {value!r} should be a number of 0 or more")
    total = sum(ratios.values())
    return {key: value / total if total else 1 / len(ratios) for key, value in ratios.items()}


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
