"""The autoencoder of Stable Diffusion (Rombach et al. 2022), applied to video frames, as in Open-Sora v1.1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, Optional, Union

import mindspore as ms
from mindspore import Tensor, nn, ops

from opensora.checkpoint.lazy_tensor import LazyTensor
from opensora.models.autoencoder_kl.blocks import Decoder, Encoder
from opensora.models.autoencoder_kl.config import AutoencoderKLConfig
from opensora.models.common.distribution import DiagonalGaussian
from opensora.models.common.layers import NO_PADDING, Conv2d
from opensora.models.pretrained import PretrainedModel

SCALE = 0.18215  # scales latents to about unit variance
PREFIX = "module."
# Names of the attention projections before diffusers 0.18.
OLD_NAMES = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}

# k -> standard normal noise (frames, C, h, w) for the k-th micro batch.
Noise = Callable[[int], Any]


class AutoencoderKL(nn.Cell):
    """Encodes frames (1, F, 3, H, W) in [-1, 1] to moments (1, F, 2 C, h, w); `decode` maps latents to frames."""

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
    """Encodes videos (B, 3, T, H, W) in [-1, 1] to scaled latents (B, C, T, H // 8, W // 8) and decodes them."""

    config_class = AutoencoderKLConfig
    config: AutoencoderKLConfig
    published_as = ("AutoencoderKL",)

    def __init__(self, **values):
        super().__init__()
        self.config = AutoencoderKLConfig.from_dict(values)
        self.module = AutoencoderKL(self.config)

    @classmethod
    def from_pretrained(
        cls,
        path: Union[str, Path],
        dtype=ms.float32,
        config: Optional[Mapping[str, Any]] = None,
        use_ema: bool = True,
        weights: Optional[str] = None,
        streamed: bool = False,
        **changes,
    ) -> VideoAutoencoderKL:
        """As `PretrainedModel.from_pretrained`; `changes` (micro_batch_size) override the config.json."""
        config = cls.published_config(path) if config is None else config
        return super().from_pretrained(path, dtype, {**config, **changes}, use_ema, weights, streamed)

    def encode(self, x: Tensor, noise: Optional[Noise] = None) -> Tensor:
        """(B, 3, T, H, W) -> a sample of the posterior of the latents, times 0.18215; random without `noise`."""
        samples = []
        for k, posterior in enumerate(self.posteriors(x)):
            samples.append(posterior.sample(None if noise is None else Tensor(noise(k))))
        return _to_video(samples, x.shape[0]) * SCALE

    def posteriors(self, x: Tensor) -> Sequence[DiagonalGaussian]:
        """The posteriors of the unscaled latents of each micro batch (F, C, h, w), with frames in the order (B T)."""
        return [DiagonalGaussian(self.module(frames)[0]) for frames in self._micro_batches(x)]

    def decode(self, z: Tensor) -> Tensor:
        """Scaled latents (B, C, T, h, w) -> (B, 3, T, 8 h, 8 w), about [-1, 1], not clipped."""
        return _to_video([self.module.decode(frames)[0] for frames in self._micro_batches(z / SCALE)], z.shape[0])

    def get_latent_size(self, input_size: Sequence[Optional[int]]) -> tuple:
        """(T, H, W) of a video -> (T, H // 8, W // 8) of its latents; None (unknown) remains None."""
        return self.config.latent_size(input_size)

    @property
    def patch_size(self) -> tuple[int, int, int]:
        """Pixels of a latent along T, H, W."""
        return self.config.patch_size

    @property
    def out_channels(self) -> int:
        """Channels of the latents."""
        return self.config.latent_channels

    def _micro_batches(self, x: Tensor) -> Sequence[Tensor]:
        """(B, C, T, H, W) -> micro batches (1, F, C, H, W)."""
        b, c, t, h, w = x.shape
        frames = x.astype(self.dtype).swapaxes(1, 2).reshape(1, b * t, c, h, w)
        return ops.split(frames, self.config.micro_batch_size or b * t, 1)

    def canonical_names(self, state: Mapping[str, LazyTensor]) -> dict[str, LazyTensor]:
        """Also adds the prefix that diffusers' files lack, and renames the attention of old files."""
        renamed = {}
        for name, tensor in state.items():
            for old, new in OLD_NAMES.items():
                name = name.replace(old, new)
            renamed[name if name.startswith(PREFIX) else PREFIX + name] = tensor
        return super().canonical_names(renamed)


def _to_video(micro_batches: Sequence[Tensor], batch: int) -> Tensor:
    """Micro batches (F, C, H, W) of frames in the order (B T) -> (B, C, T, H, W) float32."""
    frames = ops.cat(list(micro_batches), 0).astype(ms.float32)
    return frames.reshape((batch, -1) + frames.shape[1:]).swapaxes(1, 2)
