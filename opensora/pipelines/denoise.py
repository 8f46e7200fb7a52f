"""The denoising loop: from noise to latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Callable, NamedTuple, Optional, Union

import mindspore as ms
import numpy as np
from mindspore import Tensor
from tqdm import tqdm

from opensora.config.acceleration import WHOLE_RANGE, CacheSettings, check_guidance_interval, parse_cache
from opensora.parallel.agreement import Agreement
from opensora.parallel.groups import VideoGroups
from opensora.pipelines.compiled import pays
from opensora.pipelines.guidance import Guidance, GuidedPrediction, NegativeStates
from opensora.pipelines.monitor import Monitor, StepDone, denoising_state, restore
from opensora.pipelines.step_cache import with_cache
from opensora.pipelines.text import TextEmbedding
from opensora.schedulers import Scheduler

# Noise of the sampler's k-th draw.
StepNoise = Callable[[int], Union[np.ndarray, Tensor]]


@dataclass(frozen=True)
class DenoiseSettings:
    """How the videos of a run are denoised.

    Attributes:
        cache: step caching; None: every step calls the transformer.
        guidance_interval: of `Guidance`.
        groups: the processes that make a video together; None: this one.
        compiles: compile the transformer where that pays (`opensora.pipelines.compiled`).
        negative_states: what the videos of the run share.
        monitor: watches the steps; None: nothing does.
    """

    cache: Optional[CacheSettings] = None
    guidance_interval: tuple[float, float] = WHOLE_RANGE
    groups: Optional[VideoGroups] = None
    compiles: bool = True
    negative_states: NegativeStates = field(default_factory=NegativeStates)
    monitor: Optional[Monitor] = None

    @classmethod
    def of(
        cls,
        cache: Optional[str],
        guidance_interval: Sequence[float],
        groups: Optional[VideoGroups] = None,
        compiles: bool = True,
    ) -> DenoiseSettings:
        """From the values of `AccelerationOptions`.

        Raises:
            UserError: one of them is invalid.
        """
        interval = check_guidance_interval(guidance_interval, "guidance_interval")
        return cls(parse_cache(cache, "cache"), interval, groups, compiles)


class Denoised(NamedTuple):
    """Clean latents (B, C, T, H, W), float32, how often the transformer was called for them, and whether compiled."""

    latents: Tensor
    model_calls: int
    compiled: bool


def denoise(
    transformer: Any,
    scheduler: Scheduler,
    text: TextEmbedding,
    latents: Tensor,
    num_inference_steps: int,
    guidance_scale: float,
    step_noise: Optional[StepNoise],
    conditioning: Optional[Tensor] = None,
    progress: bool = True,
    settings: Optional[DenoiseSettings] = None,
    timesteps: Optional[Sequence[float]] = None,
) -> Denoised:
    """Denoises a batch of videos.

    Args:
        text: with guidance the rows of the negative prompts, then those of the prompts; without, the prompts' only.
        latents: noise of unit variance, (B, C, T, H, W).
        guidance_scale: of `Guidance`; 1 or less disables guidance.
        step_noise: the sampler's noise, the same in a continued run; None: sampled by the scheduler.
        conditioning: (B, C', T, H, W), the conditioning channels of an inpaint model.
        timesteps: those at which the steps start; then `num_inference_steps` has no effect.
    """
    settings = settings or DenoiseSettings()
    scheduler.set_timesteps(num_inference_steps if timesteps is None else None, timesteps)
    groups, calls, levels = settings.groups, scheduler.timesteps, scheduler.levels()
    guidance = Guidance(guidance_scale, settings.guidance_interval, groups.guidance if groups else None)

    def make_prediction(model: Any) -> GuidedPrediction:
        return GuidedPrediction(transformer, model, text, calls, guidance, conditioning, settings.negative_states)

    is_compiled = settings.compiles and pays(transformer, latents, len(text.mask), len(calls))
    predict, counter = with_cache(settings.cache, transformer, is_compiled, make_prediction, levels, Agreement(groups))
    first, x = 0, latents.astype(ms.float32) * scheduler.init_noise_sigma
    monitor = settings.monitor
    state = monitor.resume() if monitor is not None and settings.cache is None else None
    if state is not None:
        first, x = restore(state, scheduler)
    steps = range(first, len(calls))
    for step in tqdm(steps, "denoising", len(calls), leave=False, unit="step", disable=not progress, initial=first):
        t = calls[step]
        model_input = scheduler.scale_model_input(x, t)
        output = predict(model_input, step)
        x = scheduler.step(output, t, x, noise=step_noise)
        if monitor is not None:
            predicted_x0 = partial(levels.x0, output, model_input, step)
            state_after = partial(denoising_state, step + 1, x, scheduler) if settings.cache is None else None
            monitor.after_step(StepDone(step + 1, len(calls), predicted_x0, state_after))
    return Denoised(x, first + counter.calls, is_compiled)
