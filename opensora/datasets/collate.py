"""Samples to batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np


def stack(items: Sequence[dict]) -> dict:
    """Every array with a batch axis in front; `replaced`, the number of samples that others stand for, is summed."""
    batch = {name: np.stack([item[name] for item in items]) for name in items[0] if name != "replaced"}
    return {**batch, "replaced": sum(item.get("replaced", 0) for item in items)}


@dataclass(frozen=True)
class PadAndStack:
    """Makes batches of videos, padded with zeros behind the end of each axis.

    Attributes:
        size: frames, height and width that batches are padded to; None where the samples of a batch have one size.
        ae_stride: the autoencoder's strides in time, height and width.
        patch: the transformer's patch in latent frames, rows and columns.
    """

    size: Optional[tuple[int, int, int]]
    ae_stride: tuple[int, int, int] = (4, 8, 8)
    patch: tuple[int, int, int] = (1, 2, 2)

    def __call__(self, items: Sequence[dict]) -> dict:
        """`stack`, with pixels (B, C, T, H, W) padded, and attention_mask.

        attention_mask is float32 (B, t, h, w) over the latents, 1 where the sample is and 0 where there is but
        padding; None if all is visible.
        """
        batch = stack([{name: value for name, value in item.items() if name != "pixels"} for item in items])
        videos = [item["pixels"] for item in items]
        target = self._padded(self.size or videos[0].shape[1:])
        pixels = np.zeros((len(videos), videos[0].shape[0], *target), videos[0].dtype)
        mask = np.zeros((len(videos), *self._latent_size(target)), np.float32)
        for video, row, visible in zip(videos, pixels, mask):
            row[_corner(video.shape)] = video
            visible[_corner(self._latent_size(video.shape[1:]))] = 1
        return {"pixels": pixels, "attention_mask": None if mask.all() else mask, **batch}

    def _padded(self, size: Sequence[int]) -> tuple[int, ...]:
        """The size in which latents are whole patches."""
        (frames, *sides), (stride_t, *strides), (patch_t, *patches) = size, self.ae_stride, self.patch
        return (
            _round_up(frames - 1 + stride_t, stride_t * patch_t) + 1 - stride_t,
            *(_round_up(side, stride * patch) for side, stride, patch in zip(sides, strides, patches)),
        )

    def _latent_size(self, size: Sequence[int]) -> tuple[int, ...]:
        (frames, *sides), (stride_t, *strides) = size, self.ae_stride
        return -(-(frames - 1) // stride_t) + 1, *(-(-side // stride) for side, stride in zip(sides, strides))


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _corner(shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(side) for side in shape)
