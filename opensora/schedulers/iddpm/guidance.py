"""What the samplers share: the guided model, and fresh noise."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any, Callable, Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from opensora.errors import UserError

Noise = Optional[Callable[[int], Any]]  # k -> the k-th draw of a run, numpy or Tensor; None: drawn
Predict = Callable[[Tensor, float, Optional[Tensor]], Tensor]  # x, timestep, x_mask -> the model's output


def guided(model, model_args: Mapping[str, Any], scale: float, channels: Optional[int] = None) -> Predict:
    """The model's output for `model_args` with classifier-free guidance (Ho & Salimans 2022, eq. 6).

    The first `channels` channels (None: as many as x has) are null + scale (prompt - null), the others the prompt's.
    `model_args["y"]` (n, 1, L, D) is the text; `model.null_text(n)` stands beside it.
    """
    y = model_args["y"]
    arguments = {**model_args, "y": ops.cat((y, model.null_text(y.shape[0]).astype(y.dtype)), 0)}

    def predict(x: Tensor, timestep: float, x_mask: Optional[Tensor]) -> Tensor:
        if x_mask is not None:
            arguments["x_mask"] = ops.cat((x_mask, x_mask), 0)
        timesteps = Tensor(np.full(2 * x.shape[0], timestep, np.float32))
        output = model(ops.cat((x, x), 0), timesteps, **arguments).astype(ms.float32)
        prompt, null = ops.chunk(output, 2, 0)
        c = channels or x.shape[1]
        return ops.cat((null[:, :c] + scale * (prompt[:, :c] - null[:, :c]), prompt[:, c:]), 1)

    return predict


def drawing(noise: Noise, shape: tuple) -> Callable[[], Tensor]:
    """A function that gives N(0, 1) of `shape`, float32, a new one each time."""
    if noise is None:
        return lambda: ops.standard_normal(shape)
    numbers = count()

    def draw() -> Tensor:
        drawn = noise(next(numbers))
        drawn = (drawn if isinstance(drawn, Tensor) else Tensor(np.asarray(drawn))).astype(ms.float32)
        if tuple(drawn.shape) != tuple(shape):
            raise UserError(f"the noise has shape {tuple(drawn.shape)}, the sample {tuple(shape)}")
        return drawn

    return draw


def as_latents(latents: Any) -> Tensor:
    """(n, C, T, H, W), numpy or Tensor, as a float32 Tensor."""
    return (latents if isinstance(latents, Tensor) else Tensor(np.asarray(latents))).astype(ms.float32)
