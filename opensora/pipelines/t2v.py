"""Text to video and text to image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional, Union

import numpy as np
from mindspore import Tensor

from opensora.config.acceleration import WHOLE_RANGE
from opensora.config.options import check_choice
from opensora.models import OpenSoraT2V_v1_3
from opensora.pipelines.base import OUTPUT_TYPES, VideoPipeline
from opensora.pipelines.denoise import DenoiseSettings, StepNoise
from opensora.pipelines.sizes import check_size


class OpenSoraPipeline(VideoPipeline):
    """From a prompt to frames. `embed_prompt`, `denoise` and `decode` run the stages separately."""

    transformer_class = OpenSoraT2V_v1_3

    def __call__(
        self,
        prompt: str,
        num_frames: int = 93,
        height: int = 352,
        width: int = 640,
        num_inference_steps: int = 100,
        guidance_scale: float = 7.5,
        seed: Union[int, Sequence[int]] = 1234,
        max_sequence_length: int = 512,
        latents: Optional[Union[np.ndarray, Tensor]] = None,
        step_noise: Optional[StepNoise] = None,
        output_type: str = "frames",
        cache: Optional[str] = None,
        guidance_interval: Sequence[float] = WHOLE_RANGE,
        timesteps: Optional[Sequence[float]] = None,
    ) -> np.ndarray:
        """Generates one video, or an image if num_frames is 1.

        Args:
            prompt: the text, inserted into `prompt_template`.
            num_frames: 4n + 1. height, width: multiples of 32.
            guidance_scale: 1 or less disables guidance.
            seed: of the initial noise and of the sampler's noise.
            latents: initial noise of unit variance, (1, C, 1 + n, height / 8, width / 8); None: sampled.
            step_noise: k -> noise of the sampler's k-th draw; None: sampled.
            output_type: "frames": uint8 (1, T, H, W, 3); "video": float32 (1, T, 3, H, W), about [-1, 1], unclipped;
                "latent": float32 (1, C, 1 + n, height / 8, width / 8), normalized as for the transformer.
            cache: step caching, "easy" or "first_block", optionally with a threshold, as in "easy:0.05".
            guidance_interval: noise levels, timestep / 1000, outside which there is no guidance.
            timesteps: the training timesteps at which the steps start, instead of num_inference_steps; see
                `Scheduler.set_timesteps`.

        Raises:
            UserError: an unsupported size, an unknown output_type or cache, an invalid interval, timesteps that the
                sampler cannot take.
        """
        settings = DenoiseSettings.of(cache, guidance_interval)
        check_choice("output_type", output_type, OUTPUT_TYPES)
        check_size(num_frames, height, width)
        text = self.embed_prompt(prompt, guidance_scale, max_sequence_length)
        latents = self.denoise(
            text,
            num_frames,
            height,
            width,
            num_inference_steps,
            guidance_scale,
            seed,
            latents,
            step_noise,
            settings=settings,
            timesteps=timesteps,
        )
        return self.output(latents, output_type)
