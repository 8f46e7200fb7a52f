"""A toy autoencoder and the recorded noise of the golden cases of long videos."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from golden_cases import given
from mindspore import Tensor


class ToyVAE:
    """The golden cases' autoencoder: means over 8x8 pixels, and pixels repeated."""

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
    """Counts the draws of a whole run as the published script makes them, and keeps what the sampler was given."""

    def __init__(self, name: str):
        self.name, self.latents_drawn, self.noise_drawn = name, -1, -1

    def latents(self, clip: int, shape: tuple) -> np.ndarray:
        self.latents_drawn += 1
        return given(self.name, f"z{self.latents_drawn}", shape)

    def step(self, clip: int, k: int, shape: tuple) -> np.ndarray:
        self.noise_drawn += 1
        return given(self.name, f"noise{self.noise_drawn}", (2 * shape[0], *shape[1:]))[: shape[0]]

    def encoder(self, clip: int, shape: tuple) -> None:
        return None
