"""The autoencoder of Stable Diffusion (Rombach et al. 2022), applied to a video's frames: what Open-Sora v1.1 uses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional, Union

import mindspore as ms
from mindspore import Tensor, nn, ops

from opensora.checkpoint.lazy_tensor import LazyTensor
from opensora.models.autoencoder_kl.blocks import NO_PADDING, Decoder, Encoder
from opensora.models.autoencoder_kl.config import AutoencoderKLConfig
from opensora.models.common.distribution import DiagonalGaussian
from opensora.models.common.layers import Conv2d
from opensora.models.pretrained import PretrainedModel

SCALE = 0.18215  # makes latents of about unit variance
PREFIX = "module."
# Names of the attention's maps in files of diffusers before 0.18.
OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}

# Standard normal (frames, C, h, w) for the k-th micro batch.
Noise = Callable[[int], Any]


class AutoencoderKL(nn.Cell):
    """Frames (1, F, 3, H, W) in [-1, 1] to the moments of latents (1, F, 2 C, h, w), and latents to frames."""

    def __init__(self, config: AutoencoderKLConfig):
        super().__init__()
        latent = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = Conv2d(2 * latent, 2 * latent, 1, padding=NO_PADDING)
        self.post_quant_conv = Conv2d(latent, latent, 1, padding=NO_PADDING)

    def construct(self, x: Tensor) -> Tensor:
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(z))


class VideoAutoencoderKL(PretrainedModel):
    """Videos (B, 3, T, H, W) in [-1, 1] to scaled latents (B, C, T, H // 8, W // 8) and back, frame by frame."""

    config_class = AutoencoderKLConfig
    published_as = ("AutoencoderKL",)

    def __init__(self, **config):
        super().__init__()
        self.config = AutoencoderKLConfig.from_dict(config)
        self.module = AutoencoderKL(self.config)

    @classmethod
    def from_pretrained(
        cls,
        path: Union[str, Path],
        dtype=ms.float32,
        config: Optional[Mapping[str, Any]] = None,
        use_ema: bool = True,
        **changes,
    ) -> VideoAutoencoderKL:
        """As `PretrainedModel.from_pretrained`; `changes` (micro_batch_size) stand over what config.json says."""
        config = cls.published_config(path) if config is None else config
        return super().from_pretrained(path, dtype, {**config, **changes}, use_ema)

    def encode(self, x: Tensor, noise: Optional[Noise] = None) -> Tensor:
        """(B, 3, T, H, W) -> a draw from the posterior of the latents, times 0.18215; drawn anew without `noise`."""
        drawn = []
        for k, posterior in enumerate(self.posteriors(x)):
            drawn.append(posterior.sample(None if noise is None else Tensor(noise(k)).astype(self.dtype)))
        return _video(drawn, x.shape[0]) * SCALE

    def posteriors(self, x: Tensor) -> Sequence[DiagonalGaussian]:
        """Those of the unscaled latents of the micro batches of frames, in the order of (B T), each (F, C, h, w)."""
        return [DiagonalGaussian(self.module(frames)[0]) for frames in self._micro_batches(x)]

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (B, C, T, h, w) -> (B, 3, T, 8 h, 8 w), about [-1, 1], not clipped."""
        return _video([self.module.decode(frames)[0] for frames in self._micro_batches(z / SCALE)], z.shape[0])

    def get_latent_size(self, input_size: Sequence[Optional[int]]) -> tuple:
        """(T, H, W) of a video -> those of its latents; what is None, not yet known, stays so."""
        return tuple(size if size is None else size // stride for size, stride in zip(input_size, self.patch_size))

    @property
    def patch_size(self) -> tuple:
        return 1, self.config.spatial_stride, self.config.spatial_stride

    @property
    def out_channels(self) -> int:
        """Channels of the latents."""
        return self.config.latent_channels

    def _micro_batches(self, x: Tensor) -> Sequence[Tensor]:
        """(B, C, T, H, W) -> pieces (1, F, C, H, W) of all frames."""
        b, c, t, h, w = x.shape
        frames = x.astype(self.dtype).swapaxes(1, 2).reshape(1, b * t, c, h, w)
        return ops.split(frames, self.config.micro_batch_size or b * t, 1)

    def _with_aliases(self, state: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """Under this model's names: files of diffusers have no prefix, old ones other names for the attention."""
        renamed = {}
        for name, tensor in state.items():
            for old, new in OLD_NAMES.items():
                name = name.replace(old, new)
            renamed[name if name.startswith(PREFIX) else PREFIX + name] = tensor
        return super()._with_aliases(renamed)


def _video(pieces: Sequence[Tensor], batch: int) -> Tensor:
    """Pieces (F, C, H, W) of the frames of all videos -> (B, C, T, H, W) float32."""
    frames = ops.cat(list(pieces), 0).astype(ms.float32)
    return frames.reshape((batch, -1) + frames.shape[1:]).swapaxes(1, 2)
