"""Image to video, transitions, continuations: a video of which some frames are given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional, Union

import numpy as np
from mindspore import Tensor, ops

from opensora.config.options import check_choice
from opensora.datasets.masks import MaskCompressor, MaskType, add_noise_to_condition, check_noise_strength
from opensora.datasets.transforms import to_float
from opensora.models import OpenSoraInpaint_v1_3
from opensora.pipelines.conditions import MAX_HXW, Condition, condition_generator, read_condition
from opensora.pipelines.denoise import StepNoise
from opensora.pipelines.sizes import check_size
from opensora.pipelines.t2v import OUTPUT_TYPES, OpenSoraPipeline


class OpenSoraInpaintPipeline(OpenSoraPipeline):
    """From a prompt and given frames to frames. Between `embed` and `denoise` comes `encode_condition`."""

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
        """Makes one video with given frames; what is not named here is as in `OpenSoraPipeline`.

        Args:
            height, width: multiples of 32; only with `crop_for_hw`.
            conditional_pixel_values_path: images, or one video.
            conditional_pixel_values_indices, mask_type: which frames are given, see `conditions.read_condition`.
            crop_for_hw: make it height x width. Else the size follows from the files: at most `max_hxw` pixels.
            noise_strength: standard deviation, 0 to 1, of noise on the given frames; it makes more move.
            sample_condition: draw the given frames' latents from the autoencoder's posterior; False: take its mean.
            keep_condition: put the given frames themselves into the output, which as made only resemble them.

        Raises:
            FileNotFoundError, UserError: files or values that cannot be used.
        """
        check_choice("output_type", output_type, OUTPUT_TYPES[:-1] if keep_condition else OUTPUT_TYPES)
        check_size(num_frames, height, width)
        check_noise_strength(noise_strength)
        if isinstance(conditional_pixel_values_path, (str, Path)):
            conditional_pixel_values_path = [conditional_pixel_values_path]
        size = (height, width) if crop_for_hw else None
        given = read_condition(
            conditional_pixel_values_path, num_frames, mask_type, size, max_hxw, conditional_pixel_values_indices, seed
        )
        text = self.embed_prompt(prompt, guidance_scale, max_sequence_length)
        condition = self.encode_condition(given, noise_strength, seed, sample_condition)
        latents = self.denoise(
            text,
            num_frames,
            *given.size,
            num_inference_steps,
            guidance_scale,
            seed,
            latents,
            step_noise,
            condition=condition,
        )
        output = self.output(latents, output_type)
        if keep_condition:
            pixels = given.pixels.transpose(0, 2, 3, 1) if output_type == "frames" else to_float(given.pixels)
            output[0, list(given.indices)] = pixels
        return output

    def encode_condition(
        self,
        given: Condition,
        noise_strength: float = 0.0,
        seed: Union[int, Sequence[int]] = 1234,
        sample_condition: bool = True,
    ) -> Tensor:
        """The transformer's input beside the noisy latents: known latents and mask, float32 (1, C + 4, 1 + n, h, w)."""
        generator = condition_generator(seed)
        mask = given.mask()
        video = add_noise_to_condition(given.video(), mask, generator, noise_strength)
        vae = self.vae.get()
        posterior = vae.encode(Tensor(video).astype(vae.dtype))
        known = posterior.mean.float()
        if sample_condition:
            noise = Tensor(generator.standard_normal(known.shape, dtype=np.float32))
            known = posterior.sample(noise.astype(vae.dtype)).float()
        compress = MaskCompressor(vae.config.spatial_stride, vae.config.spatial_stride, vae.config.temporal_stride)
        return ops.cat((vae.normalize(known), Tensor(compress(mask))), 1)
