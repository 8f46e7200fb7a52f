"""CausalVAE, from videos to latents and back, of Open-Sora-Plan v1.0, v1.1 and v1.2."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Optional

import mindspore as ms
from mindspore import Tensor, ops

from opensora.errors import UserError
from opensora.models.causal_vae.config import CausalVAEConfig
from opensora.models.causal_vae.networks import Decoder, Encoder, LastLayer
from opensora.models.causal_vae.tiling import Tiling, windows
from opensora.models.common.distribution import DiagonalGaussian
from opensora.models.common.video_blocks import PointwiseConv3d
from opensora.models.pretrained import PretrainedModel
from opensora.ops.layout import slice_axis, swap_frames_channels
from opensora.parallel.stream import LocalStream


class CausalVAEModel(PretrainedModel):
    """Encodes videos (B, 3, T, H, W) in [-1, 1] into latents (B, C, ceil(T / 4), H / 8, W / 8) and back.

    C is 4 in the published models. n latent frames are decoded to 4n - 3 frames. A video of one frame is an image.

    With `enable_tiling`, large videos are processed in tiles (`opensora.models.causal_vae.tiling`), which bounds peak
    memory and changes the result.

    In a folder of weights the last `*.ckpt` comes before a safetensors file, as in the published implementation.
    """

    config_class = CausalVAEConfig
    config: CausalVAEConfig
    ignored_prefixes = ("loss.",)  # discriminator and LPIPS in the checkpoints of the training
    preferred_weights = "*.ckpt"

    def __init__(self, **values):
        super().__init__()
        self.config = config = CausalVAEConfig.from_dict(values)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = PointwiseConv3d(2 * config.z_channels, 2 * config.embed_dim)
        self.post_quant_conv = PointwiseConv3d(config.embed_dim, config.z_channels)
        self.use_tiling = False
        self.tiling = config.tiling
        self.stream = LocalStream()

    def enable_tiling(self, use_tiling: bool = True, tiling: Optional[Tiling] = None) -> None:
        """Switches tiling on or off; the class docstring describes the effect.

        Args:
            use_tiling: whether encoding and decoding are tiled.
            tiling: its sizes; None: those that were given last, by default the published ones (`config.tiling`).

        Raises:
            UserError: sizes of tiles that do not meet (`Tiling.check`).
        """
        tiling = tiling or self.tiling
        if use_tiling:
            tiling.check(self.config.spatial_stride, self.config.temporal_stride)
        self.use_tiling, self.tiling = use_tiling, tiling

    def share_decoding(self, stream: LocalStream) -> None:
        """Distributes the windows of each decoded clip over the processes of `stream`; all must pass the same latents.

        Needs PyNative mode: the processes run different windows at the same time.
        """
        self.stream = stream

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """The posterior of the latents of x (B, 3, T, H, W).

        Raises:
            UserError: H or W is not a multiple of the spatial stride.
        """
        self._check_video(x)
        if not self.use_tiling or not self.tiling.applies_to_video(x):
            return DiagonalGaussian(self._moments(x))
        moments = []
        for start, end in windows(x.shape[2], self.tiling.tile_sample_min_size_t):
            if start and end - start <= self.config.temporal_stride:
                break  # all that such a window adds is the latent frame that is dropped
            moments.append(_added_frames(self.tiling.encode(_window(x, start, end), self._moments), start))
        return DiagonalGaussian(ops.cat(moments, 2))

    def decode(self, z: Tensor) -> Tensor:
        """Latents (B, C, 1 + n, h, w) -> video (B, 3, 1 + 4n, 8h, 8w), about [-1, 1], not clipped, float32."""
        if self.use_tiling:
            return ops.cat(list(self.decode_chunks(z)), 2)
        self._check_latents(z)
        return self._video(z)

    def decode_chunks(self, z: Tensor) -> Iterator[Tensor]:
        """Yields the output of `decode` with tiling in consecutive chunks (B, 3, t, 8h, 8w), one for each window."""
        self._check_latents(z)
        if not self.tiling.applies_to_latents(z):
            yield self._video(z)
            return
        chunks, size = windows(z.shape[2], self.tiling.tile_latent_min_size_t), self.stream.size
        for first in range(0, len(chunks), size):
            start, end = chunks[min(first + self.stream.index, len(chunks) - 1)]
            chunk = _added_frames(self.tiling.decode(_window(z, start, end), self._video), start)
            yield from self.stream.gather_in_order(chunk, len(chunks) - first)

    def encode_with_coefficients(self, x: Tensor) -> tuple[DiagonalGaussian]:
        """The posterior. As `WFVAEModel.encode_with_coefficients`, but this model has no wavelet coefficients."""
        self._check_video(x)
        return (DiagonalGaussian(self._moments(x)),)

    def decode_with_coefficients(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The video and the input of the last layer."""
        self._check_latents(z)
        video, h = self.decoder.with_last_input(self.post_quant_conv(swap_frames_channels(z)))
        return swap_frames_channels(video.astype(ms.float32)), h

    def last_layer(self) -> LastLayer:
        """The last layer of the decoder as a function of its weight."""
        return LastLayer(self.decoder.conv_out)

    def normalize(self, z: Tensor) -> Tensor:
        """Scales samples of the posterior to latents of about unit variance, as the diffusion model uses them."""
        return z * self.config.default_scale

    def denormalize(self, latents: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        return latents / self.config.default_scale

    def _moments(self, x: Tensor) -> Tensor:
        """Video (B, 3, T, H, W) -> moments (B, 2C, t, h, w)."""
        moments, _ = self.encoder(swap_frames_channels(x))
        return swap_frames_channels(self.quant_conv(moments))

    def _video(self, z: Tensor) -> Tensor:
        """Latents (B, C, t, h, w) -> video (B, 3, T, H, W) float32."""
        video, _ = self.decoder(self.post_quant_conv(swap_frames_channels(z)))
        return swap_frames_channels(video.astype(ms.float32))

    def _check_video(self, x: Tensor) -> None:
        if x.ndim != 5 or x.shape[1] != 3:
            raise UserError(f"a video must be (B, 3, T, H, W), not {tuple(x.shape)}")
        stride = self.config.spatial_stride
        _, _, t, h, w = x.shape
        if h % stride or w % stride:
            raise UserError(f"a video of {h}x{w} cannot be encoded: height and width must be multiples of {stride}")

    def _check_latents(self, z: Tensor) -> None:
        if z.ndim != 5 or z.shape[1] != self.config.latent_dim:
            raise UserError(f"latents must be (B, {self.config.latent_dim}, T, H, W), not {tuple(z.shape)}")


def _window(x: Tensor, start: int, end: int) -> Tensor:
    return x if (start, end) == (0, x.shape[2]) else slice_axis(x, 2, start, end)


def _added_frames(result: Tensor, start: int) -> Tensor:
    """The frames that a window which starts at `start` adds: the previous window has the first one."""
    return slice_axis(result, 2, 1, result.shape[2]) if start else result
