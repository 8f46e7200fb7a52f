"""Tiling of CausalVAE in time and space, with the numbers of the published implementations.

Time is divided into windows that share one frame. Each is processed alone, and the first result frame of every window
but the first is dropped. Space is divided into overlapping tiles, and the results are blended linearly. Group norms
average over a tile, so tiling changes the result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from opensora.errors import UserError
from opensora.ops.layout import concat, slice_axis, split

ROWS, COLUMNS = 3, 4  # axes of (B, C, T, H, W)


@dataclass(frozen=True)
class Tiling:
    """Sizes of tiles, with the names of the attributes of the published model.

    Attributes:
        tile_sample_min_size: pixels of a tile's height and width.
        tile_latent_min_size: the same of latents.
        tile_sample_min_size_t: frames of a window; None: time is not divided.
        tile_latent_min_size_t: the same of latents.
        tile_overlap_factor: the share of a tile that its successor repeats.
    """

    tile_sample_min_size: int
    tile_latent_min_size: int
    tile_sample_min_size_t: Optional[int]
    tile_latent_min_size_t: Optional[int]
    tile_overlap_factor: float

    def check(self, spatial_stride: int, temporal_stride: int) -> None:
        """Checks that the results of consecutive tiles meet, for a model with these strides.

        The published implementation rounds a tile's step and its overlap down separately. If their sum is then less
        than the tile, the result has the wrong size.

        Raises:
            UserError: they do not meet.
        """
        pixels, latents, overlap = self.tile_sample_min_size, self.tile_latent_min_size, self.tile_overlap_factor
        encoded = _step(pixels, overlap), spatial_stride * _kept(latents, overlap)
        decoded = spatial_stride * _step(latents, overlap), _kept(pixels, overlap)
        if not 0 <= overlap < 1 or 0 in encoded + decoded or encoded[0] != encoded[1] or decoded[0] != decoded[1]:
            raise UserError(
                f"tiles of {pixels} pixels and {latents} latents with an overlap of {overlap} do not meet: "
                f"pixels must be {spatial_stride} times latents, and latents times overlap a whole number"
            )
        frames, latent_frames = self.tile_sample_min_size_t, self.tile_latent_min_size_t
        if frames is not None and (frames <= temporal_stride or (frames - 1) % temporal_stride):
            raise UserError(f"windows of {frames} frames do not meet: frames must be {temporal_stride}n+1, and not 1")
        if latent_frames is not None and latent_frames < 2:
            raise UserError(f"windows of {latent_frames} latent frames do not meet: they must have 2 or more")

    def applies_to_video(self, x: Tensor) -> bool:
        """Whether an extent of a video (B, C, T, H, W) exceeds a tile; otherwise it is processed whole."""
        return _exceeds(x, self.tile_sample_min_size, self.tile_sample_min_size_t)

    def applies_to_latents(self, z: Tensor) -> bool:
        """Whether an extent of latents (B, C, T, H, W) exceeds a tile; otherwise they are processed whole."""
        return _exceeds(z, self.tile_latent_min_size, self.tile_latent_min_size_t)

    def encode(self, x: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """`encode`, from (B, C, T, H, W) to moments, of tiles in space of a window x."""
        kept = _kept(self.tile_latent_min_size, self.tile_overlap_factor)
        blended = int(self.tile_latent_min_size * self.tile_overlap_factor)
        return _in_tiles(x, encode, self.tile_sample_min_size, self.tile_overlap_factor, kept, blended)

    def decode(self, z: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
        """`decode`, from latents to video (B, C, T, H, W), of tiles in space of a window z."""
        kept = _kept(self.tile_sample_min_size, self.tile_overlap_factor)
        blended = int(self.tile_sample_min_size * self.tile_overlap_factor)
        return _in_tiles(z, decode, self.tile_latent_min_size, self.tile_overlap_factor, kept, blended)


PUBLISHED_TILING = {
    "v1.0": Tiling(256, 32, None, None, 0.25),
    "v1.1": Tiling(256, 32, 65, 17, 0.25),
    "v1.2": Tiling(256, 32, 33, 16, 0.125),
    "v1.2 sampling": Tiling(512, 64, 29, 8, 0.125),
    "v1.2 saving memory": Tiling(256, 32, 29, 8, 0.125),
}


def windows(frames: int, length: Optional[int]) -> list[tuple[int, int]]:
    """(start, end) of windows of `length` frames, the last one perhaps shorter; neighbors share one frame."""
    if length is None or frames <= length:
        return [(0, frames)]
    return [(start, min(start + length, frames)) for start in range(0, frames - 1, length - 1)]


def _step(size: int, overlap: float) -> int:
    """Distance of the starts of consecutive tiles, rounded as in the published implementation."""
    return int(size * (1 - overlap))


def _kept(size: int, overlap: float) -> int:
    """What is kept of a result tile that others follow."""
    return size - int(size * overlap)


def _exceeds(x: Tensor, size: int, frames: Optional[int]) -> bool:
    return max(x.shape[ROWS], x.shape[COLUMNS]) > size or frames is not None and x.shape[2] > frames


def _in_tiles(
    x: Tensor, transform: Callable[[Tensor], Tensor], size: int, overlap: float, kept: int, blended: int
) -> Tensor:
    """Transforms tiles of height and width `size`, blends `blended` rows and columns of the results and joins them."""
    step = _step(size, overlap)
    height, width = x.shape[ROWS], x.shape[COLUMNS]
    rows: list[Tensor] = []
    above: list[Tensor] = []  # the tiles of the previous row, blended
    for top in range(0, height, step):
        strip = _up_to(x, ROWS, top, top + size)
        row: list[Tensor] = []
        for left in range(0, width, step):
            tile = transform(_up_to(strip, COLUMNS, left, left + size))
            if above:
                tile = _blend(above[len(row)], tile, blended, ROWS)
            if row:
                tile = _blend(row[-1], tile, blended, COLUMNS)
            row.append(tile)
        above = row
        rows.append(ops.cat([_up_to(_up_to(tile, ROWS, 0, kept), COLUMNS, 0, kept) for tile in row], COLUMNS))
    return ops.cat(rows, ROWS)


def _up_to(x: Tensor, axis: int, start: int, end: int) -> Tensor:
    """x[start:end] along `axis`, where `end` may exceed the size."""
    end = min(end, x.shape[axis])
    return x if (start, end) == (0, x.shape[axis]) else slice_axis(x, axis, start, end)


def _blend(before: Tensor, tile: Tensor, extent: int, axis: int) -> Tensor:
    """`tile` with its first rows or columns, at most `extent`, faded in from the last ones of the tile before it."""
    extent = min(before.shape[axis], tile.shape[axis], extent)
    if extent == 0:
        return tile
    shape = [1] * tile.ndim
    shape[axis] = extent
    fade = Tensor((np.arange(extent) / extent).reshape(shape), ms.float32)
    end = slice_axis(before, axis, before.shape[axis] - extent, before.shape[axis])
    if extent == tile.shape[axis]:
        return end * (1 - fade) + tile * fade
    start, rest = split(tile, axis, extent)
    return concat(end * (1 - fade) + start * fade, rest, axis)
