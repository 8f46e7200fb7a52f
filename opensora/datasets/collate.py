"""Collates samples into batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np


def stack(items: Sequence[dict]) -> dict[str, Any]:
    """Stacks every array along a new batch axis; `replaced`, the number of replaced samples, is summed."""
    batch = {name: np.stack([item[name] for item in items]) for name in items[0] if name != "replaced"}
    return {**batch, "replaced": sum(item.get("replaced", 0) for item in items)}


@dataclass(frozen=True)
class PadAndStack:
    """Makes batches of videos or of latents, zero-padded at the end of each axis.

    Attributes:
        size: frames, height and width to pad to; None if all samples of a batch have the same size.
        ae_stride: the autoencoder's strides in time, height and width; 1 if the samples are latents.
        patch: the transformer's patch size in latent frames, rows and columns.
        key: name of the samples' array that is padded, (C, T, H, W).
    """

    size: Optional[tuple[int, int, int]]
    ae_stride: tuple[int, int, int] = (4, 8, 8)
    patch: tuple[int, int, int] = (1, 2, 2)
    key: str = "pixels"

    def for_latents(self, key: str) -> PadAndStack:
        """The same batches, of the latents `key` of each sample."""
        size = None if self.size is None else self._latent_size(self._padded_size(self.size))
        return PadAndStack(size, (1, 1, 1), self.patch, key)

    def __call__(self, items: Sequence[dict]) -> dict[str, Any]:
        """As `stack`, with `key` (B, C, T, H, W) padded, and with `attention_mask`.

        attention_mask is float32 (B, t, h, w) over latents: 1 inside the sample, 0 in the padding. It is None if there
        is no padding.
        """
        batch = stack([{name: value for name, value in item.items() if name != self.key} for item in items])
        videos = [item[self.key] for item in items]
        target = self._padded_size(self.size or videos[0].shape[1:])
        pixels = np.zeros((len(videos), videos[0].shape[0], *target), videos[0].dtype)
        mask = np.zeros((len(videos), *self._latent_size(target)), np.float32)
        for video, row, mask_row in zip(videos, pixels, mask):
            row[_corner(video.shape)] = video
            mask_row[_corner(self._latent_size(video.shape[1:]))] = 1
        return {self.key: pixels, "attention_mask": None if mask.all() else mask, **batch}

    def _padded_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """The smallest size, at least `size`, whose latents divide into whole patches."""
        (frames, *sides), (stride_t, *strides), (patch_t, *patches) = size, self.ae_stride, self.patch
        return (
            _round_up(frames - 1 + stride_t, stride_t * patch_t) + 1 - stride_t,
            *(_round_up(side, stride * patch) for side, stride, patch in zip(sides, strides, patches)),
        )

    def _latent_size(self, size: Sequence[int]) -> tuple[int, int, int]:
        (frames, height, width), (stride_t, stride_h, stride_w) = size, self.ae_stride
        return -(-(frames - 1) // stride_t) + 1, -(-height // stride_h), -(-width // stride_w)


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _corner(shape: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(side) for side in shape)
