"""Text to video and text to image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional, Union

import numpy as np
from mindspore import Tensor

from opensora import models
from opensora.config.acceleration import WHOLE_RANGE
from opensora.config.generations import Generation
from opensora.config.options import check_choice
from opensora.models import OpenSoraT2V_v1_3
from opensora.models.pretrained import PretrainedModel
from opensora.pipelines.base import OUTPUT_TYPES, VideoPipeline
from opensora.pipelines.denoise import DenoiseSettings, StepNoise
from opensora.pipelines.sizes import check_size


class OpenSoraPipeline(VideoPipeline):
    """From a prompt to frames. `embed_prompt`, `denoise` and `decode` run the stages separately."""

    transformer_class = OpenSoraT2V_v1_3

    @classmethod
    def transformer_class_of(cls, generation: Generation) -> type[PretrainedModel]:
        return getattr(models, generation.transformer)

    def __call__(
        self,
        prompt: str,
        num_frames: Optional[int] = None,
        height: Optional[int] = None,
        width: Optional[int] = None,
        num_inference_steps: Optional[int] = None,
        guidance_scale: Optional[float] = None,
        seed: Union[int, Sequence[int]] = 1234,
        max_sequence_length: Optional[int] = None,
        latents: Optional[Union[np.ndarray, Tensor]] = None,
        step_noise: Optional[StepNoise] = None,
        output_type: str = "frames",
        cache: Optional[str] = None,
        guidance_interval: Sequence[float] = WHOLE_RANGE,
        timesteps: Optional[Sequence[float]] = None,
    ) -> np.ndarray:
        """Generates one video, or an image if num_frames is 1.

        Arguments that are None have the values of the generation of the weights (`opensora.config.generations`).

        Args:
            prompt: the text, inserted into `prompt_template`.
            num_frames: 4n + 1. height, width: multiples of 32, before v1.3 of 16.
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
        num_frames = self.default("num_frames", num_frames)
        is_image = num_frames == 1
        height, width = self.default("height", height), self.default("width", width)
        steps = self.default("num_sampling_steps", num_inference_steps, is_image)
        guidance_scale = self.default("guidance_scale", guidance_scale, is_image)
        check_size(num_frames, height, width, step=self.generation.size_step)
        text = self.embed_prompt(prompt, guidance_scale, max_sequence_length)
        latents = self.denoise(
            text,
            num_frames,
            height,
            width,
            steps,
            guidance_scale,
            seed,
            latents,
            step_noise,
            settings=settings,
            timesteps=timesteps,
        )
        return self.output(latents, output_type)
