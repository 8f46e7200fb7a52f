"""The denoising loop: from noise to latents."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Callable, Optional, Union

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from tqdm import tqdm

from opensora.pipelines.text import TextEmbedding
from opensora.schedulers import Scheduler

# Noise of the sampler's k-th draw.
StepNoise = Callable[[int], Union[np.ndarray, Tensor]]


def denoise(
    transformer,
    scheduler: Scheduler,
    text: TextEmbedding,
    latents: Tensor,
    num_inference_steps: int,
    guidance_scale: float,
    step_noise: Optional[StepNoise],
    conditioning: Optional[Tensor] = None,
    progress: bool = True,
    timesteps: Optional[Sequence[float]] = None,
) -> Tensor:
    """Returns the clean latents, (B, C, T, H, W), float32; see `denoise_steps` for the arguments.

    Args:
        timesteps: those at which the steps start; then `num_inference_steps` has no effect.
    """
    scheduler.set_timesteps(num_inference_steps if timesteps is None else None, timesteps)
    steps = denoise_steps(transformer, scheduler, text, latents, guidance_scale, step_noise, conditioning)
    bar = tqdm(steps, "denoising", len(scheduler.timesteps), leave=False, unit="step", disable=not progress)
    (result,) = deque(bar, maxlen=1)
    return result


def denoise_steps(
    transformer,
    scheduler: Scheduler,
    text: TextEmbedding,
    latents: Tensor,
    guidance_scale: float,
    step_noise: Optional[StepNoise] = None,
    conditioning: Optional[Tensor] = None,
) -> Iterator[Tensor]:
    """Yields the latents, (B, C, T, H, W), float32, after each of `scheduler.timesteps`.

    Args:
        scheduler: after `set_timesteps`.
        text: with guidance the rows of the negative prompts, then those of the prompts; without, the prompts' only.
        latents: noise of unit variance, (B, C, T, H, W).
        guidance_scale: above 1, predictions are negative + scale (positive - negative) (Ho & Salimans 2022, eq. 6).
        step_noise: the sampler's noise; None: sampled by the scheduler.
        conditioning: (B, C', T, H, W), concatenated to the latents' channels as model input.
    """
    guided = guidance_scale > 1
    copies = 2 if guided else 1
    states = transformer.text_states(Tensor(text.states).expand_dims(1))
    states = ms.mutable(states)  # an input in graph mode, not a constant
    mask = text.attention_mask()
    x = latents.astype(ms.float32) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        model_input = scheduler.scale_model_input(x, t)
        if conditioning is not None:
            model_input = ops.cat((model_input, conditioning), 1)
        if guided:
            model_input = ops.cat((model_input, model_input), 0)
        timestep = Tensor(np.full(copies * x.shape[0], t, np.float32))
        prediction = transformer(model_input, timestep, None, None, mask, states).astype(ms.float32)
        if guided:
            negative, positive = ops.chunk(prediction, 2, 0)
            prediction = negative + guidance_scale * (positive - negative)
        x = scheduler.step(prediction, t, x, noise=step_noise)
        yield x
