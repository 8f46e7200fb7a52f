"""Text to video and text to image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Optional, Union

import mindspore as ms
import numpy as np
from mindspore import Tensor

from opensora.checkpoint.files import find_weights
from opensora.config.options import check_choice
from opensora.datasets.transforms import to_uint8
from opensora.errors import UserError
from opensora.models import MT5EncoderModel, OpenSoraT2V_v1_3, WFVAEModel
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.pipelines.denoise import StepNoise, denoise
from opensora.pipelines.lazy import Part
from opensora.pipelines.prompts import NEGATIVE, POSITIVE, check_template
from opensora.pipelines.sizes import check_size
from opensora.pipelines.text import TextEmbedding, embed_text
from opensora.schedulers import get_scheduler

OUTPUT_TYPES = ("frames", "video", "latent")


class OpenSoraPipeline:
    """From a prompt to frames: text encoder, denoising, decoder.

    Each of the three steps (`embed`, `denoise`, `decode`) can be called by itself; calling the pipeline does all.

    Args:
        prompt_template: what is written around prompts, {} being the prompt; the default is that of the published
            weights.
        negative_prompt: what guidance leads away from.

    Raises:
        UserError: no {} in the template.
    """

    transformer_class = OpenSoraT2V_v1_3

    def __init__(
        self,
        text_encoder: Part,
        tokenizer: Tokenizer,
        transformer: Part,
        vae: Part,
        scheduler,
        prompt_template: str = POSITIVE,
        negative_prompt: str = NEGATIVE,
    ):
        check_template(prompt_template)
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.transformer = transformer
        self.vae = vae
        self.scheduler = scheduler
        self.prompt_template, self.negative_prompt = prompt_template, negative_prompt

    @classmethod
    def from_pretrained(
        cls,
        model_path: Union[str, Path],
        ae_path: Union[str, Path],
        text_encoder: Union[str, Path],
        sample_method: str = "EulerAncestralDiscrete",
        prediction_type: str = "v_prediction",
        rescale_betas_zero_snr: bool = True,
        dtype=ms.float32,
        prompt_template: str = POSITIVE,
        negative_prompt: str = NEGATIVE,
    ) -> OpenSoraPipeline:
        """A pipeline from folders in the published layout; models load when they are first used.

        Raises:
            FileNotFoundError, UserError: a folder that holds another model, or none.
        """
        for model, folder in (
            (cls.transformer_class, model_path),
            (WFVAEModel, ae_path),
            (MT5EncoderModel, text_encoder),
        ):
            model.published_config(folder)
            find_weights(folder)
        return cls(
            text_encoder=Part(lambda: MT5EncoderModel.from_pretrained(text_encoder, dtype=dtype)),
            tokenizer=Tokenizer(text_encoder),
            transformer=Part(lambda: cls.transformer_class.from_pretrained(model_path, dtype=dtype)),
            vae=Part(lambda: WFVAEModel.from_pretrained(ae_path, dtype=dtype)),
            scheduler=get_scheduler(
                sample_method, prediction_type=prediction_type, rescale_betas_zero_snr=rescale_betas_zero_snr
            ),
            prompt_template=prompt_template,
            negative_prompt=negative_prompt,
        )

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
    ) -> np.ndarray:
        """Makes one video, or an image where num_frames is 1.

        Args:
            prompt: the text; `prompt_template` is put around it.
            num_frames: 4n + 1. height, width: multiples of 32.
            guidance_scale: 1 or less means no guidance.
            seed: of the initial noise and of the sampler's noise.
            latents: the initial noise, (1, C, 1 + n, height / 8, width / 8), unit variance, instead of drawn noise.
            step_noise: k -> the sampler's k-th noise, instead of drawn noise.
            output_type: "frames": uint8 (1, T, H, W, 3); "video": float32 (1, T, 3, H, W), about [-1, 1], unclipped;
                "latent": float32 (1, C, 1 + n, height / 8, width / 8), as the transformer has them.

        Raises:
            UserError: a size the model cannot make, an unknown output_type.
        """
        check_choice("output_type", output_type, OUTPUT_TYPES)
        check_size(num_frames, height, width)
        text = self.embed_prompt(prompt, guidance_scale, max_sequence_length)
        latents = self.denoise(
            text, num_frames, height, width, num_inference_steps, guidance_scale, seed, latents, step_noise
        )
        return self.output(latents, output_type)

    def embed(self, texts: Sequence[str], max_sequence_length: int = 512) -> TextEmbedding:
        """Embeds texts as they are, without templates."""
        return embed_text(self.text_encoder.get(), self.tokenizer, texts, max_sequence_length)

    def embed_prompt(self, prompt: str, guidance_scale: float, max_sequence_length: int = 512) -> TextEmbedding:
        """What `denoise` needs for a prompt: its template, behind the negative prompt if there is guidance."""
        text = self.prompt_template.replace("{}", prompt)
        return self.embed([self.negative_prompt, text] if guidance_scale > 1 else [text], max_sequence_length)

    def denoise(
        self,
        text: TextEmbedding,
        num_frames: int,
        height: int,
        width: int,
        num_inference_steps: int,
        guidance_scale: float,
        seed: Union[int, Sequence[int]] = 1234,
        latents: Optional[Union[np.ndarray, Tensor]] = None,
        step_noise: Optional[StepNoise] = None,
        progress: bool = True,
        condition: Optional[Tensor] = None,
    ) -> Tensor:
        """Latents (1, C, 1 + n, height / 8, width / 8) for an embedded prompt and its `condition`, if any."""
        transformer = self.transformer.get()
        generator = np.random.default_rng(seed)
        shape = (1, transformer.config.in_channels, (num_frames - 1) // 4 + 1, height // 8, width // 8)
        if latents is None:
            latents = generator.standard_normal(shape, dtype=np.float32)
        elif tuple(latents.shape) != shape:
            raise UserError(f"latents are {tuple(latents.shape)}; {num_frames} frames of {height}x{width} need {shape}")
        if step_noise is None:

            def step_noise(_):
                return Tensor(generator.standard_normal(shape, dtype=np.float32))

        return denoise(
            transformer,
            self.scheduler,
            text.trimmed(),
            _tensor(latents),
            num_inference_steps,
            guidance_scale,
            lambda k: _tensor(step_noise(k)),
            condition,
            progress,
        )

    def decode(self, latents: Tensor) -> Iterator[np.ndarray]:
        """Yields uint8 frames (B, t, H, W, 3) in order of time.

        They come chunk by chunk, in constant memory, where that changes nothing or the autoencoder's tiling is on.
        """
        for chunk in self._decoded(latents):
            yield to_uint8(chunk.transpose(0, 2, 3, 4, 1))

    def output(self, latents: Tensor, output_type: str) -> np.ndarray:
        """Latents as one of `OUTPUT_TYPES`."""
        if output_type == "latent":
            return latents.asnumpy()
        if output_type == "frames":
            return np.concatenate(list(self.decode(latents)), 1)
        return np.concatenate(list(self._decoded(latents)), 2).transpose(0, 2, 1, 3, 4)

    def _decoded(self, latents: Tensor) -> Iterator[np.ndarray]:
        vae = self.vae.get()
        z = vae.denormalize(latents).astype(vae.dtype)
        in_chunks = vae.use_tiling or vae.config.streams_exactly
        for chunk in vae.decode_chunks(z) if in_chunks else [vae.decode(z)]:
            yield chunk.float().asnumpy()  # B 3 t H W


def _tensor(x: Union[np.ndarray, Tensor]) -> Tensor:
    return x if isinstance(x, Tensor) else Tensor(np.asarray(x, np.float32))
