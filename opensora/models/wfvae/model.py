"""WFVAE, from videos to latents and back (Li et al. 2024, arXiv:2411.17459)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from opensora.errors import UserError
from opensora.models.common.distribution import DiagonalGaussian
from opensora.models.pretrained import PretrainedModel
from opensora.models.wfvae.config import WFVAEConfig
from opensora.models.wfvae.decoder import Decoder, LastLayer
from opensora.models.wfvae.encoder import Encoder
from opensora.parallel.stream import LocalStream

ENCODE_CHUNK = 8  # video frames, as published
DECODE_CHUNK = 2  # latent frames, as published


class WFVAEModel(PretrainedModel):
    """Encodes videos (B, 3, 1 + s n, H, W) in [-1, 1] into latents (B, latent_dim, 1 + n, H/8, W/8) and back.

    The temporal stride s is 4, or 8 if level 1 halves time too. A video of one frame is an image.

    With `enable_tiling`, clips are processed in chunks along time and peak memory does not grow with the clip. Models
    with layer norm, such as the released weights, give the same result as for the whole clip. Group norm averages over
    a chunk, which changes the result; the chunks are therefore those of the published model, and an even number of
    latent frames, which does not divide into its chunks of 1, 2, 2, ... frames, is decoded in one chunk.
    """

    config_class = WFVAEConfig
    config: WFVAEConfig

    def __init__(self, **values):
        super().__init__()
        self.config = config = WFVAEConfig.from_dict(values)
        assert config.scale is not None and config.shift is not None, "set by WFVAEConfig"
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.scale = Tensor(np.reshape(config.scale, (1, -1, 1, 1, 1)), ms.float32)
        self.shift = Tensor(np.reshape(config.shift, (1, -1, 1, 1, 1)), ms.float32)
        self.use_tiling = False
        self.stream = LocalStream()

    def enable_tiling(self, use_tiling: bool = True) -> None:
        """Switches encoding and decoding in chunks along time on or off; the class docstring describes the effect."""
        self.use_tiling = use_tiling

    def share_decoding(self, stream: LocalStream) -> None:
        """Distributes the chunks of each decoded clip over the processes of `stream`; all must pass the same latents.

        Needs PyNative mode: the processes run different chunks at the same time, and their collectives must match.
        """
        self.stream = stream
        for _, cell in self.decoder.cells_and_names():
            if hasattr(cell, "stream"):
                cell.stream = stream

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """The posterior of the latents of x (B, 3, T, H, W).

        Raises:
            UserError: T is not 1 + s n, or H or W is not a multiple of 8.
        """
        if not self.use_tiling:
            return self.encode_with_coefficients(x)[0]
        self._check_video(x)
        cache, moments = None, []
        for start, end in self._encode_chunks(x.shape[2]):
            last = end == x.shape[2]
            chunk, _, _, cache = self.encoder(x[:, :, start:end], _mutable(cache), last)
            moments.append(chunk)
        return DiagonalGaussian(ops.cat(moments, 2))

    def encode_with_coefficients(self, x: Tensor) -> tuple[DiagonalGaussian, Tensor, Tensor]:
        """The posterior and the wavelet coefficients of both levels, (B, 12 or 24, ...) and (B, 24, ...)."""
        self._check_video(x)
        moments, l1, l2, _ = self.encoder(x)
        return DiagonalGaussian(moments), l1, l2

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, latent_dim, 1 + n, h, w) -> video (B, 3, 1 + s n, 8h, 8w), about [-1, 1], not clipped."""
        if self.use_tiling:
            return ops.cat(list(self.decode_chunks(z)), 2)
        self._check_latents(z)
        return self.decoder(z)[0]

    def decode_with_coefficients(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The video, both levels' wavelet coefficients in the encoder's shapes, and the input of the last layer."""
        self._check_latents(z)
        h, low, l1, l2, _ = self.decoder.backbone(z)
        return self.decoder.to_video(h, low), l1, l2, h

    def last_layer(self) -> LastLayer:
        """The last layer of the decoder as a function of its weight."""
        return LastLayer(self.decoder)

    def decode_chunks(self, z: Tensor) -> Iterator[Tensor]:
        """Yields the output of `decode` with tiling in consecutive chunks (B, 3, t, 8h, 8w).

        Memory does not grow with n, except if there is only one chunk (see the class docstring).
        """
        self._check_latents(z)
        cache, frames = None, z.shape[2]
        chunks, size = self._decode_chunks(frames), self.stream.size
        for first in range(0, len(chunks), size):
            start, end = chunks[min(first + self.stream.index, len(chunks) - 1)]
            chunk, _, _, cache = self.decoder(z[:, :, start:end], _mutable(cache), end == frames)
            yield from self.stream.gather_in_order(chunk, len(chunks) - first)

    def normalize(self, z: Tensor) -> Tensor:
        """Scales samples of the posterior to latents of about unit variance, as the diffusion model uses them."""
        return (z - self.shift) * self.scale

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        return latents / self.scale + self.shift

    def _encode_chunks(self, frames: int) -> list[tuple[int, int]]:
        starts = [0, *range(1, frames, ENCODE_CHUNK)]
        return list(zip(starts, [*starts[1:], frames]))

    def _decode_chunks(self, frames: int) -> list[tuple[int, int]]:
        """(start, end) of each chunk in latent frames, overlap (`WFVAEConfig.decoder_overlap`) included.

        The first chunk has more than the clip's first frame, because temporal upsampling cannot cache that frame. With
        group norm an even number of frames is one chunk (see the class docstring).
        """
        if self.config.decoder_overlap and frames % 2 == 0:
            return [(0, frames)]
        first = 1 if self.config.decoder_overlap else 1 + DECODE_CHUNK
        starts = [0, *range(first, frames, DECODE_CHUNK)]
        ends = [min(frames, start + self.config.decoder_overlap) for start in [*starts[1:], frames]]
        return list(zip(starts, ends))

    def _check_video(self, x: Tensor) -> None:
        stride = self.config.temporal_stride
        if x.ndim != 5 or x.shape[1] != 3:
            raise UserError(f"a video must be (B, 3, T, H, W), not {tuple(x.shape)}")
        _, _, t, h, w = x.shape
        if (t - 1) % stride or h % 8 or w % 8:
            raise UserError(
                f"a video of {t} frames of {h}x{w} cannot be encoded: frames must be {stride}n+1, "
                f"height and width multiples of 8"
            )

    def _check_latents(self, z: Tensor) -> None:
        if z.ndim != 5 or z.shape[1] != self.config.latent_dim:
            raise UserError(f"latents must be (B, {self.config.latent_dim}, T, H, W), not {tuple(z.shape)}")

    def torch_buffers(self) -> dict[str, np.ndarray]:
        """The wavelet filters, which PyTorch checkpoints store as weights and buffers."""
        return {
            f"{cell_name}.{name}": value
            for cell_name, cell in self.cells_and_names()
            for name, value in getattr(cell, "filters", {}).items()
        }


def _mutable(cache: Optional[tuple]) -> Optional[tuple]:
    """Marks a cache as mutable: graph mode compiles any other tuple of tensors as a constant, again for every chunk."""
    return None if cache is None else ms.mutable(cache)
