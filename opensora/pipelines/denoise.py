"""The loop from noise to latents."""

from __future__ import annotations

from typing import Callable, Optional, Union

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from tqdm import tqdm

from opensora.pipelines.text import TextEmbedding

# Noise for the k-th draw of a run.
StepNoise = Callable[[int], Union[np.ndarray, Tensor]]


def denoise(
    transformer,
    scheduler,
    text: TextEmbedding,
    latents: Tensor,
    num_inference_steps: int,
    guidance_scale: float,
    step_noise: StepNoise,
    condition: Optional[Tensor] = None,
    progress: bool = True,
) -> Tensor:
    """Latents of unit variance -> clean latents, (B, C, T, H, W), float32.

    With guidance (Ho & Salimans 2022, eq. 6: negative + scale (positive - negative)) `text` holds the negative
    prompts' rows, then the positive ones'; without, the positive ones' alone. `condition` (B, C', T, H, W) joins the
    model's input behind the latents' channels.
    """
    guided = guidance_scale > 1
    copies = 2 if guided else 1
    states = transformer.text_states(Tensor(text.states).astype(transformer.dtype).expand_dims(1))
    states = ms.mutable(states)  # an input of graph mode, not a constant of it
    mask = text.attention_mask()
    scheduler.set_timesteps(num_inference_steps)
    x = latents.astype(ms.float32) * scheduler.init_noise_sigma
    for t in tqdm(scheduler.timesteps, desc="denoising", unit="step", leave=False, disable=not progress):
        model_input = scheduler.scale_model_input(x, t)
        if condition is not None:
            model_input = ops.cat((model_input, condition), 1)
        if guided:
            model_input = ops.cat((model_input, model_input), 0)
        timestep = Tensor(np.full(copies * x.shape[0], t, np.float32))
        prediction = transformer(model_input, timestep, None, None, mask, states).astype(ms.float32)
        if guided:
            negative, positive = ops.chunk(prediction, 2, 0)
            prediction = negative + guidance_scale * (positive - negative)
        x = scheduler.step(prediction, t, x, noise=step_noise)
    return x
