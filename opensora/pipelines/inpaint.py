"""Image to video, transition and continuation: video generation with conditioning frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional, Union

import numpy as np
from mindspore import Tensor, ops

from opensora.config.acceleration import WHOLE_RANGE
from opensora.config.options import check_choice
from opensora.datasets.masks import MaskCompressor, MaskType, add_noise_to_condition, check_noise_strength
from opensora.datasets.transforms import to_float
from opensora.models import OpenSoraInpaint_v1_3
from opensora.pipelines.base import OUTPUT_TYPES, VideoPipeline
from opensora.pipelines.conditioning import (
    MAX_HXW,
    ConditioningFrames,
    conditioning_generator,
    read_conditioning_frames,
)
from opensora.pipelines.denoise import DenoiseSettings, StepNoise
from opensora.pipelines.sizes import check_size


class OpenSoraInpaintPipeline(VideoPipeline):
    """From a prompt and conditioning frames to frames; the stage `encode_condition` precedes `denoise`."""

    transformer_class = OpenSoraInpaint_v1_3

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
        *,
        conditional_pixel_values_path: Union[str, Path, Sequence[Union[str, Path]]],
        conditional_pixel_values_indices: Optional[Sequence[int]] = None,
        mask_type: Union[str, MaskType, None] = None,
        crop_for_hw: bool = False,
        max_hxw: int = MAX_HXW,
        noise_strength: float = 0.0,
        sample_condition: bool = True,
        keep_condition: bool = False,
    ) -> np.ndarray:
        """Generates one video with conditioning frames; arguments not listed are those of `OpenSoraPipeline`.

        Args:
            height: a multiple of 32; used only with `crop_for_hw`.
            width: as height.
            conditional_pixel_values_path: images, or one video.
            conditional_pixel_values_indices: the positions of the conditioning frames, see
                `conditioning.read_conditioning_frames`.
            mask_type: a pattern of positions instead, as `MaskType` names them.
            crop_for_hw: generate height x width. Otherwise the size follows from the files: at most `max_hxw` pixels.
            noise_strength: standard deviation, 0 to 1, of noise on the conditioning frames; more noise, more motion.
            sample_condition: sample the conditioning latents from the autoencoder's posterior; False: use its mean.
            keep_condition: copy the conditioning frames into the output; the generated ones only resemble them.

        Raises:
            FileNotFoundError, UserError: unusable files or values.
        """
        settings = DenoiseSettings.of(cache, guidance_interval)
        check_choice("output_type", output_type, OUTPUT_TYPES[:-1] if keep_condition else OUTPUT_TYPES)
        check_size(num_frames, height, width)
        check_noise_strength(noise_strength)
        paths = conditional_pixel_values_path
        frames = read_conditioning_frames(
            [paths] if isinstance(paths, (str, Path)) else paths,
            num_frames,
            mask_type,
            (height, width) if crop_for_hw else None,
            max_hxw,
            conditional_pixel_values_indices,
            seed,
        )
        text = self.embed_prompt(prompt, guidance_scale, max_sequence_length)
        conditioning = self.encode_condition(frames, noise_strength, seed, sample_condition)
        latents = self.denoise(
            text,
            num_frames,
            *frames.size,
            num_inference_steps,
            guidance_scale,
            seed=seed,
            latents=latents,
            step_noise=step_noise,
            conditioning=conditioning,
            settings=settings,
            timesteps=timesteps,
        )
        output = self.output(latents, output_type)
        if keep_condition:
            pixels = frames.pixels.transpose(0, 2, 3, 1) if output_type == "frames" else to_float(frames.pixels)
            output[0, list(frames.indices)] = pixels
        return output

    def encode_condition(
        self,
        frames: ConditioningFrames,
        noise_strength: float = 0.0,
        seed: Union[int, Sequence[int]] = 1234,
        sample_condition: bool = True,
    ) -> Tensor:
        """Conditioning latents and mask, float32 (1, C + 4, 1 + n, h, w), which `denoise` concatenates to the latents.

        The mask has one channel for each of the 4 frames of a latent frame.
        """
        generator = conditioning_generator(seed)
        mask = frames.mask()
        video = add_noise_to_condition(frames.video(), mask, generator, noise_strength)
        vae = self.vae.get()
        posterior = vae.encode(Tensor(video))
        latents = posterior.mean.float()
        if sample_condition:
            noise = Tensor(generator.standard_normal(latents.shape, dtype=np.float32))
            latents = posterior.sample(noise)
        compress = MaskCompressor(vae.config.spatial_stride, vae.config.spatial_stride, vae.config.temporal_stride)
        return ops.cat((vae.normalize(latents), Tensor(compress(mask))), 1)
