"""Open-Sora v1.0 and v1.1: single clips from texts or classes, with Stable Diffusion's autoencoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Callable, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor

from opensora.config.acceleration import CacheSettings
from opensora.datasets.bucketed.dataset import IMAGE_FPS
from opensora.models.lora import LoRAs
from opensora.parallel.agreement import Agreement
from opensora.pipelines.compiled import pays
from opensora.pipelines.guidance import STDiTPrediction
from opensora.pipelines.lora import LoRAMixin
from opensora.pipelines.step_cache import calls_note, with_cache
from opensora.pipelines.text import text_inputs
from opensora.utils.logs import logger


@dataclass(frozen=True)
class ClipSize:
    """Number of frames, size in pixels, and the frame rate that the model is conditioned on."""

    num_frames: int
    height: int
    width: int
    fps: float

    @property
    def video(self) -> tuple[int, int, int]:
        return self.num_frames, self.height, self.width

    def conditioning(self, count: int) -> dict[str, Tensor]:
        """The conditioning inputs of `count` equal clips, each (count,); images have their own frame rate."""
        fps = IMAGE_FPS if self.num_frames == 1 else self.fps
        values = {
            "num_frames": self.num_frames,
            "height": self.height,
            "width": self.width,
            "ar": self.height / self.width,
            "fps": fps,
        }
        return {name: Tensor(np.full(count, value, np.float32)) for name, value in values.items()}


class STDiTPipeline(LoRAMixin):
    """The stages from texts, noise and conditioning frames to pixels; `long_video` runs them for consecutive clips.

    Args:
        scheduler: a sampler of `opensora.schedulers.iddpm`.
        cache: step caching; None: every step calls the transformer.
        compiles: compile the transformer where that pays (`opensora.pipelines.compiled`).
    """

    def __init__(
        self,
        text_encoder: Any,
        transformer,
        vae,
        scheduler,
        cache: Optional[CacheSettings] = None,
        compiles: bool = True,
    ):
        self.text_encoder, self.transformer, self.vae, self.scheduler = text_encoder, transformer, vae, scheduler
        self.cache, self.compiles = cache, compiles
        self.model_calls = 0  # of the last call of `sample`
        self.loras = LoRAs()

    def get_transformer(self) -> Any:
        return self.transformer

    def embed(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """The model's text inputs for n texts.

        The text encoder is a `Conditioner`, or a function from texts to their `TextEmbedding`.
        """
        if hasattr(self.text_encoder, "inputs"):
            inputs = self.text_encoder.inputs(texts)
        else:
            inputs = text_inputs(self.text_encoder(texts))
        return {name: Tensor(values) for name, values in inputs.items()}

    def latent_shape(self, video_size: Sequence[int]) -> tuple[int, int, int, int]:
        """(frames, height, width) of a video -> (C, T, h, w) of its latents."""
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
        """Noise to latents, (n, C, T, h, w). Frames whose edit rate, mask (n, T), is below 1 hold references.

        `model_calls` is then the number of calls of the transformer that they took.
        """
        sampler, inputs = self.scheduler, size.conditioning(len(latents))

        def make_prediction(model: Any) -> STDiTPrediction:
            return STDiTPrediction(self.transformer, model, text, inputs, sampler)

        calls = len(sampler.call_timesteps)
        is_compiled = self.compiles and pays(self.transformer, Tensor(latents), 2 * len(latents), calls)
        predict, counter = with_cache(
            self.cache, self.transformer, is_compiled, make_prediction, sampler.levels(), Agreement()
        )
        number = count()
        result = sampler.run(lambda x, _, x_mask: predict(x, next(number), x_mask), latents, mask, noise, progress)
        self.model_calls = counter.calls
        if self.cache and progress:
            logger.info(calls_note(counter.calls, calls))
        return result

    def decode(self, latents: Tensor) -> np.ndarray:
        """(n, C, T, h, w) -> float32 (n, 3, T, 8 h, 8 w), about [-1, 1], unclipped."""
        return self.vae.decode(latents).astype(ms.float32).asnumpy()

    def encode(self, pixels: np.ndarray, noise: Optional[np.ndarray] = None) -> np.ndarray:
        """(n, 3, T, H, W) in [-1, 1] -> latents (n, C, T, h, w), sampled from the posterior.

        Args:
            noise: standard normal, of the latents' shape; None: sampled.
        """
        frame_noise = None if noise is None else FrameNoise(noise, getattr(self.vae.config, "micro_batch_size", None))
        return self.vae.encode(Tensor(pixels), frame_noise).astype(ms.float32).asnumpy()


class FrameNoise:
    """Noise (n, C, T, h, w) in the autoencoder's batches: the k-th batch of frames, (frames, C, h, w)."""

    def __init__(self, noise: np.ndarray, micro_batch_size: Optional[int]):
        self.frames = noise.swapaxes(1, 2).reshape(-1, noise.shape[1], *noise.shape[3:])  # n T C h w -> F C h w
        self.size = micro_batch_size or len(self.frames)

    def __call__(self, k: int) -> np.ndarray:
        return self.frames[k * self.size : (k + 1) * self.size]
