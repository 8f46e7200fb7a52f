"""Open-Sora v1.1: one clip from its texts, with STDiT2, Stable Diffusion's autoencoder and T5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor

from opensora.datasets.bucketed.dataset import IMAGE_FPS
from opensora.pipelines.text import TextEncoder
from opensora.registry import MODEL, SCHEDULER, TEXT_ENCODER, VAE, build


@dataclass(frozen=True)
class ClipSize:
    """Of a clip: frames, pixels, and the frame rate that the model is told."""

    num_frames: int
    height: int
    width: int
    fps: float

    @property
    def video(self) -> tuple[int, int, int]:
        return self.num_frames, self.height, self.width

    def numbers(self, count: int) -> dict[str, Tensor]:
        """What the model is told, of `count` equal clips; images have a rate of their own."""
        fps = IMAGE_FPS if self.num_frames == 1 else self.fps
        values = {
            "num_frames": self.num_frames,
            "height": self.height,
            "width": self.width,
            "ar": self.height / self.width,
            "fps": fps,
        }
        return {name: Tensor(np.full(count, value, np.float32)) for name, value in values.items()}


class STDiTPipeline:
    """Text, noise and given frames to pixels, all steps by themselves; `long_video` chains them.

    Args:
        scheduler: of `opensora.schedulers.iddpm`.
    """

    def __init__(self, text_encoder: TextEncoder, transformer, vae, scheduler):
        self.text_encoder, self.transformer, self.vae, self.scheduler = text_encoder, transformer, vae, scheduler

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], dtype=ms.float32, video_size: Sequence[Optional[int]] = (None, None, None)
    ) -> STDiTPipeline:
        """The parts that a config names, the model made to fit the others.

        Args:
            config: `model`, `vae`, `text_encoder` and `scheduler`, see `opensora.registry`.
            video_size: frames, height and width; None where they vary.
        """
        scheduler = build(config["scheduler"], SCHEDULER)  # first: its errors should not wait for the models
        vae = build(config["vae"], VAE, dtype=dtype).set_train(False)
        text_encoder = build(config["text_encoder"], TEXT_ENCODER, dtype=dtype)
        model = build(
            config["model"],
            MODEL,
            dtype=dtype,
            input_size=vae.get_latent_size(video_size),
            in_channels=vae.out_channels,
            caption_channels=text_encoder.width,
            model_max_length=text_encoder.max_length,
        ).set_train(False)
        return cls(text_encoder, model, vae, scheduler)

    def embed(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """What the model takes of n texts: y (n, 1, L, D) and mask (n, L)."""
        embedding = self.text_encoder(texts)
        return {"y": Tensor(embedding.states[:, None]), "mask": Tensor(embedding.mask)}

    def latent_shape(self, video_size: Sequence[int]) -> tuple[int, int, int, int]:
        """Frames, height and width of a video -> (C, T, h, w) of its latents."""
        return self.vae.out_channels, *self.vae.get_latent_size(video_size)

    def sample(
        self,
        text: Mapping[str, Tensor],
        size: ClipSize,
        latents: np.ndarray,
        mask: Optional[np.ndarray] = None,
        noise: Optional[Callable[[int], Any]] = None,
        progress: bool = False,
    ) -> Tensor:
        """Noise (n, C, T, h, w), with references in it where the mask (n, T) of edit rates is below 1, to latents."""
        return self.scheduler.sample(
            self.transformer, latents, {**text, **size.numbers(len(latents))}, mask, noise, progress
        )

    def decode(self, latents: Tensor) -> np.ndarray:
        """(n, C, T, h, w) -> float32 (n, 3, T, 8 h, 8 w), about [-1, 1], not clipped."""
        return self.vae.decode(latents).astype(ms.float32).asnumpy()

    def encode(self, pixels: np.ndarray, noise: Optional[np.ndarray] = None) -> np.ndarray:
        """(n, 3, T, H, W) in [-1, 1] -> latents (n, C, T, h, w), drawn from their posterior.

        `noise`, standard normal of the latents' shape, makes the draw repeatable.
        """
        draws = None if noise is None else FrameNoise(noise, getattr(self.vae.config, "micro_batch_size", None))
        return self.vae.encode(Tensor(pixels), draws).astype(ms.float32).asnumpy()


class FrameNoise:
    """Noise (n, C, T, h, w) as the autoencoder asks for it, in batches of frames."""

    def __init__(self, noise: np.ndarray, micro_batch_size: Optional[int]):
        self.frames = noise.swapaxes(1, 2).reshape(-1, noise.shape[1], *noise.shape[3:])  # n T C h w -> F C h w
        self.size = micro_batch_size or len(self.frames)

    def __call__(self, k: int) -> np.ndarray:
        return self.frames[k * self.size : (k + 1) * self.size]
