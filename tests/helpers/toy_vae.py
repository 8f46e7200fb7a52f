"""A toy autoencoder, and the noise of the golden cases of long videos."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from golden_cases import given
from mindspore import Tensor


class ToyVAE:
    """The autoencoder of the golden cases: encodes 8x8 block means, decodes by repetition."""

    out_channels, config = 4, SimpleNamespace()

    def get_latent_size(self, size: tuple) -> tuple:
        return size[0], size[1] // 8, size[2] // 8

    def encode(self, x, noise=None):
        b, c, t, h, w = x.shape
        means = x.asnumpy().reshape(b, c, t, h // 8, 8, w // 8, 8).mean((4, 6))
        return Tensor(np.concatenate([means, means.mean(1, keepdims=True)], 1))

    def decode(self, z):
        return Tensor(np.tanh(z.asnumpy()[:, :3] / 2).repeat(8, 3).repeat(8, 4))


class GoldenNoise:
    """Noise of the golden cases, numbered over all clips in the order of the published script's draws."""

    def __init__(self, name: str):
        self.name, self.latents_draws, self.noise_draws = name, -1, -1

    def latents(self, clip: int, shape: tuple) -> np.ndarray:
        self.latents_draws += 1
        return given(self.name, f"z{self.latents_draws}", shape)

    def step(self, clip: int, k: int, shape: tuple) -> np.ndarray:
        self.noise_draws += 1
        return given(self.name, f"noise{self.noise_draws}", (2 * shape[0], *shape[1:]))[: shape[0]]

    def encoder(self, clip: int, shape: tuple) -> None:
        return None
