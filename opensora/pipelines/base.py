"""The stages that text to video and inpainting share: text encoding, denoising, decoding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

import mindspore as ms
import numpy as np
from mindspore import Tensor

from opensora.checkpoint.files import find_weights, read_config
from opensora.config.families import V1_5_BETAS
from opensora.config.generations import GENERATIONS, LATEST, Generation, as_trained, generation_of
from opensora.config.prompts import check_template
from opensora.datasets.transforms import to_uint8
from opensora.errors import UserError
from opensora.models import MT5EncoderModel
from opensora.models.lora import LoRAs
from opensora.models.pretrained import PretrainedModel
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.models.vaes import vae_class
from opensora.ops.backend import convolution_dtype
from opensora.pipelines.denoise import DenoiseSettings, StepNoise, denoise
from opensora.pipelines.lazy import LazyModel
from opensora.pipelines.lora import LoRAMixin
from opensora.pipelines.published import cleaned_text, make_scheduler, prompt_text
from opensora.pipelines.text import TextEmbedding, embed_cut, embed_text, embed_texts
from opensora.schedulers import Scheduler

if TYPE_CHECKING:
    from typing_extensions import Self

OUTPUT_TYPES = ("frames", "video", "latent")


class VideoPipeline(LoRAMixin):
    """Text encoder, denoising transformer and autoencoder. Subclasses set the transformer and define `__call__`.

    Args:
        prompt_template: text around the prompt, which replaces {}; None: that of the published weights.
        negative_prompt: guidance moves away from this text; None: as above.
        loras: LoRAs of the transformer; None: none.
        generation: of the weights; it decides how prompts are embedded.

    Raises:
        UserError: the template has no {}.
    """

    transformer_class: type[PretrainedModel]

    def __init__(
        self,
        text_encoder: LazyModel,
        tokenizer: Tokenizer,
        transformer: LazyModel,
        vae: LazyModel,
        scheduler: Scheduler,
        prompt_template: Optional[str] = None,
        negative_prompt: Optional[str] = None,
        loras: Optional[LoRAs] = None,
        generation: Generation = GENERATIONS[LATEST],
    ):
        self.generation = generation
        prompt_template = self.default("prompt_template", prompt_template)
        negative_prompt = self.default("negative_prompt", negative_prompt)
        check_template(prompt_template)
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.transformer = transformer
        self.vae = vae
        self.scheduler = scheduler
        self.prompt_template, self.negative_prompt = prompt_template, negative_prompt
        self.model_calls, self.compiled = 0, False  # of the last call of `denoise`
        self.loras = loras or LoRAs()
        self.transformer.after_load = self.loras.apply

    @classmethod
    def from_pretrained(
        cls,
        model_path: Union[str, Path],
        ae_path: Union[str, Path],
        text_encoder: Union[str, Path],
        sample_method: Optional[str] = None,
        prediction_type: Optional[str] = None,
        rescale_betas_zero_snr: Optional[bool] = None,
        dtype=ms.float32,
        prompt_template: Optional[str] = None,
        negative_prompt: Optional[str] = None,
        vae_dtype=None,
        weights: Optional[str] = None,
        streamed: bool = False,
    ) -> Self:
        """Creates a pipeline from folders in the published layout; models load at first use.

        Prediction type and noise schedule are by default those in the transformer's config.json, else, as sampler,
        template and negative prompt, those of the weights' generation (`opensora.config.generations`).

        Args:
            dtype: float32, float16 or bfloat16, in which text encoder and transformer compute.
            vae_dtype: the same for the autoencoder; None: `dtype`, but float16 for bfloat16 on Ascend.
            weights: how the weights are held in memory, one of `opensora.config.memory.WEIGHTS`; None: in `dtype`.
            streamed: text encoder and transformer read their blocks from the files while they compute.

        Raises:
            FileNotFoundError, UserError: a folder holds no model, or a different one.
        """
        config = read_config(model_path)
        generation = as_trained(generation_of(config) or GENERATIONS[LATEST], config)
        transformer_class = cls.transformer_class_of(generation)
        vae_model = vae_class(generation.vae)
        for model, folder in ((transformer_class, model_path), (vae_model, ae_path), (MT5EncoderModel, text_encoder)):
            model.published_config(folder)
            find_weights(folder, model.preferred_weights)
        settings = generation.settings_for(is_image=False)
        zero_snr = generation.zero_snr if rescale_betas_zero_snr is None else rescale_betas_zero_snr
        return cls(
            text_encoder=LazyModel(
                lambda: MT5EncoderModel.from_pretrained(text_encoder, dtype, weights=weights, streamed=streamed)
            ),
            tokenizer=Tokenizer(text_encoder),
            transformer=LazyModel(
                lambda: transformer_class.from_pretrained(model_path, dtype, weights=weights, streamed=streamed)
            ),
            vae=LazyModel(
                lambda: vae_model.from_pretrained(ae_path, vae_dtype or convolution_dtype(dtype), weights=weights)
            ),
            scheduler=make_scheduler(
                generation,
                sample_method or settings["sample_method"],
                prediction_type=prediction_type or settings["prediction_type"],
                rescale_betas_zero_snr=zero_snr,
                **(V1_5_BETAS if config.get("v1_5_scheduler") else {}),
            ),
            prompt_template=prompt_template,
            negative_prompt=negative_prompt,
            generation=generation,
        )

    @classmethod
    def transformer_class_of(cls, generation: Generation) -> type[PretrainedModel]:
        """The class of the transformer of this pipeline's task."""
        return cls.transformer_class

    def default(self, name: str, given: Any, is_image: bool = False) -> Any:
        """The value of a setting: the given one, or that of the generation if it is None."""
        return self.generation.settings_for(is_image)[name] if given is None else given

    def get_transformer(self) -> Any:
        return self.transformer.get()

    def embed(self, texts: Sequence[str], max_sequence_length: Optional[int] = None) -> TextEmbedding:
        """Embeds texts without template."""
        length = self.default("max_sequence_length", max_sequence_length)
        return embed_text(self.text_encoder.get(), self.tokenizer, texts, length)

    def embed_prompt(
        self, prompt: str, guidance_scale: float, max_sequence_length: Optional[int] = None
    ) -> TextEmbedding:
        """Embeds a prompt in its template for `denoise`; with guidance, the negative prompt comes first."""
        return self.embed_prompts([prompt], guidance_scale, max_sequence_length)[0]

    def embed_prompts(
        self, prompts: Sequence[str], guidance_scale: float, max_sequence_length: Optional[int] = None
    ) -> list[TextEmbedding]:
        """`embed_prompt` for several prompts. Every text is embedded once, without its padding."""
        max_length = self.default("max_sequence_length", max_sequence_length)
        templates = [self.text_of(prompt) for prompt in prompts]
        negatives = [cleaned_text(self.generation, self.negative_prompt)] if guidance_scale > 1 else []
        if self.generation.cuts_texts:
            encoder = self.text_encoder.get()
            return list(embed_cut(encoder, self.tokenizer, templates, negatives, max_length))
        rows = [[*negatives, text] for text in templates]
        texts = list(dict.fromkeys(text for row in rows for text in row))
        encoder = self.text_encoder.get()
        embedded = dict(zip(texts, embed_texts(encoder, self.tokenizer, texts, max_length)))
        return [TextEmbedding.concatenate([embedded[text] for text in row]) for row in rows]

    def text_of(self, prompt: str) -> str:
        """A prompt in its template, as the text encoder gets it."""
        return prompt_text(self.generation, self.prompt_template, prompt)

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
        conditioning: Optional[Tensor] = None,
        settings: Optional[DenoiseSettings] = None,
        timesteps: Optional[Sequence[float]] = None,
    ) -> Tensor:
        """Latents (1, C, 1 + n, height / 8, width / 8) for an embedded prompt and the output of `encode_condition`.

        `model_calls` is then the number of calls of the transformer that they took, `compiled` whether it was compiled.
        """
        transformer = self.transformer.get()
        generator = np.random.default_rng(seed)
        shape = (1, transformer.config.in_channels, (num_frames - 1) // 4 + 1, height // 8, width // 8)
        if latents is None:
            latents = generator.standard_normal(shape, dtype=np.float32)
        elif tuple(latents.shape) != shape:
            raise UserError(f"latents are {tuple(latents.shape)}; {num_frames} frames of {height}x{width} need {shape}")

        drawn = 0

        def sample_noise(k: int) -> Tensor:
            nonlocal drawn
            if step_noise:
                return _tensor(step_noise(k))
            for _ in range(k - drawn):  # the draws of the steps before a continued run
                generator.standard_normal(shape, dtype=np.float32)
            drawn = k + 1
            return Tensor(generator.standard_normal(shape, dtype=np.float32))

        denoised = denoise(
            transformer,
            self.scheduler,
            text,
            _tensor(latents),
            num_inference_steps,
            guidance_scale,
            sample_noise,
            conditioning,
            progress,
            settings,
            timesteps,
        )
        self.model_calls, self.compiled = denoised.model_calls, denoised.compiled
        return denoised.latents

    def decode(self, latents: Tensor) -> Iterator[np.ndarray]:
        """Yields uint8 frames (B, t, H, W, 3) in temporal order.

        Decoding is chunked, in constant memory, if that does not change the result or if tiling is enabled.
        """
        for chunk in self._decode_chunks(latents):
            yield to_uint8(chunk.transpose(0, 2, 3, 4, 1))

    def output(self, latents: Tensor, output_type: str) -> np.ndarray:
        """Converts latents to one of `OUTPUT_TYPES`."""
        if output_type == "latent":
            return latents.asnumpy()
        if output_type == "frames":
            return np.concatenate(list(self.decode(latents)), 1)
        return np.concatenate(list(self._decode_chunks(latents)), 2).transpose(0, 2, 1, 3, 4)

    def _decode_chunks(self, latents: Tensor) -> Iterator[np.ndarray]:
        vae = self.vae.get()
        z = vae.denormalize(latents)
        chunked = vae.use_tiling or vae.config.streams_exactly
        for chunk in vae.decode_chunks(z) if chunked else [vae.decode(z)]:
            yield chunk.float().asnumpy()  # B 3 t H W


def _tensor(x: Union[np.ndarray, Tensor]) -> Tensor:
    return x if isinstance(x, Tensor) else Tensor(np.asarray(x, np.float32))
