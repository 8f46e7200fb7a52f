"""The options of sample.py, checked before any weight is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Optional

from opensora.config.acceleration import AccelerationOptions
from opensora.config.command_line import parse_flags
from opensora.config.device import DeviceOptions
from opensora.config.families import DEFAULT_VAE, PREDICTION_TYPES, SAMPLERS, V1_5_BETAS, VAES
from opensora.config.generations import GENERATIONS, LATEST, Generation, get_generation
from opensora.config.lora import LoRAOptions, LoRASpec
from opensora.config.memory import MemoryOptions
from opensora.config.options import check_at_least_one, check_choice, from_mapping, option, option_of
from opensora.config.prompts import check_template
from opensora.datasets.masks import MaskType, check_noise_strength
from opensora.errors import UserError
from opensora.pipelines.sizes import MAX_HXW, check_size
from opensora.sample.generation import (
    check_attention,
    check_autoencoder,
    check_frames,
    folder_and_generation,
    generation_settings,
    objective_settings,
)
from opensora.sample.timesteps_file import read_timesteps
from opensora.utils.logs import logger
from opensora.utils.text_files import check_characters

TEXT_TYPES = ("t2v", "dit")  # the second is the published name of v1.2
INPAINT_TYPES = ("inpaint", "i2v")  # two published names of the same task
CONDITION_FLAGS = (
    "conditional_pixel_values_path",
    "mask_type",
    "condition_frames",
    "crop_for_hw",
    "noise_strength",
    "keep_condition",
)
PROMPT_COLUMNS = ("prompt", "caption", "cap", "text")  # of tables and json objects that hold prompts

_DEFAULTS = GENERATIONS[LATEST].settings_for(is_image=False)
_weights, _output, _condition, _sampling, _memory = (
    partial(option, group=group)
    for group in (
        "weights",
        "output",
        "conditioning frames, with --model_type inpaint or i2v",
        "sampling",
        "memory and stages",
    )
)


@dataclass(frozen=True)
class SampleOptions:
    """One run of sample.py.

    Raises:
        UserError: values out of range, or options that contradict each other.
    """

    model_path: str = _weights(help="folder of the diffusion transformer")
    ae_path: str = _weights(help="folder of the autoencoder")
    text_encoder_name_1: str = _weights(
        help="folder of mT5 or T5 v1.1, with its tokenizer", flags=("--text_encoder_name",)
    )
    text_prompt: Sequence[str] = _output(
        help="prompts, or one file of them: .txt with one prompt per line, .csv with a column or "
        f".json or .jsonl with objects that have {' or '.join(PROMPT_COLUMNS)}"
    )
    model_type: str = _weights(
        "t2v",
        "t2v (dit is its published name in v1.2): conditioned on text; inpaint or i2v: on text and frames",
        choices=(*TEXT_TYPES, *INPAINT_TYPES),
    )
    version: Optional[str] = _weights(
        None,
        f"generation of the weights, {', '.join(GENERATIONS)}, or with v1.0 and v1.1 FRAMESxHEIGHTxWIDTH, which also "
        "names the subfolder of --model_path; default: that of the weights",
    )
    ms_checkpoint: Optional[str] = _weights(None, "file of transformer weights, instead of those in --model_path")
    lora: Sequence[LoRASpec] = option_of(LoRAOptions, "lora", group="weights")
    ae: str = _weights(DEFAULT_VAE, "name of the autoencoder", choices=tuple(VAES))
    text_encoder_device: Optional[str] = _weights(
        None,
        "CPU: the text encoder runs in another process, on the CPU and in float32, and takes no memory of the NPU; "
        "default: as --device",
        choices=("CPU",),
    )
    caption_refiner: Optional[str] = _weights(None, "folder of a language model that rewrites the prompts first")

    prompt_template: str = _output(
        _DEFAULTS["prompt_template"],
        "text around each prompt, with {} for the prompt; default: that of the published weights",
    )
    negative_prompt: str = _output(
        _DEFAULTS["negative_prompt"], "negative prompt of guidance; default: that of the published weights"
    )
    save_img_path: str = _output("./sample_videos", "folder for the results")
    num_frames: int = _output(_DEFAULTS["num_frames"], "frames of a video, 4n+1; 1 makes images")
    force_images: bool = _output(False, "make images: --num_frames 1")
    height: int = _output(_DEFAULTS["height"], "frame height in pixels, a multiple of 32, before v1.3 of 16")
    width: int = _output(_DEFAULTS["width"], "frame width in pixels, a multiple of 32, before v1.3 of 16")
    fps: int = _output(_DEFAULTS["fps"], "frame rate of the video files")
    num_samples_per_prompt: int = _output(1, "samples of each prompt, which differ in their noise")
    video_extension: str = _output("mp4", "file type; jpg and png are for images", choices=("mp4", "gif", "jpg", "png"))
    overwrite: bool = _output(False, "replace results that exist already")

    conditional_pixel_values_path: Optional[str] = _condition(
        None,
        "a text file: line i has the images, separated by commas, or the video for the prompt in line i; or for a "
        "single prompt such a line itself",
    )
    mask_type: Optional[str] = _condition(
        None,
        "which frames are conditioning frames; default: the first for one image, the first and the last for two, the "
        "first half for a video",
        choices=tuple(MaskType.__members__),
    )
    condition_frames: Sequence[int] = _condition(
        (),
        "which frames of the result the given images are, from 0, or from the end with -1; for images, instead of "
        "--mask_type",
        metavar="FRAME",
    )
    crop_for_hw: bool = _condition(
        False, "crop and resize everything to --height x --width; otherwise the files determine the size"
    )
    max_hxw: int = _condition(MAX_HXW, "maximum number of pixels of a frame, without --crop_for_hw")
    noise_strength: float = _condition(0.0, "strength of the noise on conditioning frames, 0 to 1")
    keep_condition: bool = _condition(
        False, "copy the conditioning frames into the result; otherwise it only resembles them"
    )

    sample_method: str = _sampling(_DEFAULTS["sample_method"], "the sampler", choices=SAMPLERS)
    num_sampling_steps: int = _sampling(_DEFAULTS["num_sampling_steps"], "steps of the sampler")
    timesteps: Optional[str] = _sampling(
        None,
        "file with the timesteps at which the steps start, instead of --num_sampling_steps; search_steps.py writes it",
        metavar="FILE",
    )
    guidance_scale: float = _sampling(_DEFAULTS["guidance_scale"], "classifier-free guidance scale; 1: no guidance")
    guidance_interval: tuple[float, float] = option_of(AccelerationOptions, "guidance_interval")
    cache: Optional[str] = option_of(AccelerationOptions, "cache")
    max_sequence_length: int = _sampling(_DEFAULTS["max_sequence_length"], "maximum number of text tokens")
    prediction_type: Optional[str] = _sampling(
        None,
        "prediction type of the weights; default: that of their config.json, else v_prediction, before v1.3 epsilon",
        choices=PREDICTION_TYPES,
    )
    rescale_betas_zero_snr: bool = _sampling(
        False,
        "noise schedule with zero terminal SNR, as the published weights need it; on by default if the config.json of "
        "the weights records it",
    )
    v1_5_scheduler: bool = _sampling(
        False,
        "noise schedule of Stable Diffusion 1.5 and Open-Sora-Plan v1.5; on by default if the config.json of the "
        "weights records it",
    )
    sparse1d: bool = _sampling(False, "require weights with skiparse attention")
    sparse_n: Optional[int] = _sampling(None, "require weights with this skiparse factor")

    enable_tiling: bool = _memory(
        False,
        "decode in chunks along time, and before v1.3 in tiles, even where that changes the result (group norm); with "
        "layer norm, as in the published weights of v1.3, decoding is always chunked and exact",
    )
    tile_overlap_factor: Optional[float] = _memory(
        None, "share of a tile that its neighbor repeats, with --enable_tiling before v1.3; default: the published one"
    )
    memory: Optional[int] = option_of(MemoryOptions, "memory")
    weights: Sequence[str] = option_of(MemoryOptions, "weights")
    save_memory: bool = _memory(
        False, "load text encoder, transformer and autoencoder one at a time; smaller tiles in v1.2"
    )
    save_latents: bool = _memory(False, "stop before decoding and write the latents as .npy")
    decode_latents: bool = _memory(False, "only decode the files of --save_latents")
    sp_size: int = _memory(1, "processes of msrun that share each video; other groups make other videos")
    sp: bool = _memory(False, "all processes share each video")
    cfg_size: Optional[int] = _memory(
        None,
        "2: the negative prompt's and the prompt's half of guidance are computed by different processes of msrun, so "
        "that --sp_size times 2 processes share each video; default: 2 where processes would have no video to make",
        choices=(1, 2),
    )
    seed: int = DeviceOptions.seed
    chosen_timesteps: tuple[float, ...] = ()  # the content of --timesteps

    def __post_init__(self):
        check_choice("--ae", self.ae, VAES)
        if self.version is not None:
            get_generation(self.version)
        if self.force_images:
            object.__setattr__(self, "num_frames", 1)
        check_size(self.num_frames, self.height, self.width, VAES[self.ae][1], self.generation.size_step)
        check_at_least_one(
            self, "num_sampling_steps", "num_samples_per_prompt", "max_sequence_length", "fps", "sp_size"
        )
        if self.video_extension in ("jpg", "png") and not self.is_image:
            raise UserError(
                f"--video_extension {self.video_extension} is for images: use --num_frames 1, or mp4 or gif"
            )
        if self.save_latents and self.decode_latents:
            raise UserError("--save_latents stops before decoding, --decode_latents only decodes: use one of them")
        AccelerationOptions(self.cache, self.guidance_interval)
        if self.cfg_size == 2 and self.guidance_scale <= 1:
            raise UserError(
                f"--cfg_size 2 splits the work of guidance, which --guidance_scale {self.guidance_scale:g} disables"
            )
        check_template(self.prompt_template)
        for name in ("prompt_template", "negative_prompt"):
            check_characters(getattr(self, name), f"--{name}")
        if self.sp and self.sp_size > 1:
            raise UserError("--sp is --sp_size with the number of all processes: use one of them")
        self.held_weights()
        self._check_generation_flags()
        self._check_condition_flags()

    def held_weights(self) -> Mapping[str, Optional[str]]:
        """The format of the weights by model, see `MemoryOptions`."""
        return MemoryOptions(self.memory, self.weights).weights_by_model()

    def embeds_on_host(self, target: str) -> bool:
        """Whether the text encoder runs in another process, given the target of this one."""
        return self.text_encoder_device is not None and self.text_encoder_device != target

    @property
    def generation(self) -> Generation:
        """The generation of the weights."""
        return GENERATIONS[self.version or LATEST]

    def tiling(self) -> Optional[Any]:
        """The tiles in space and time of --enable_tiling; None where the generation has none.

        Raises:
            UserError: --tile_overlap_factor is out of range.
        """
        from opensora.models.causal_vae.tiling import PUBLISHED_TILING

        name = self.generation.saving_tiling if self.save_memory else self.generation.tiling
        if name is None:
            return None
        tiling = PUBLISHED_TILING[name]
        if self.tile_overlap_factor is not None:
            tiling = replace(tiling, tile_overlap_factor=self.tile_overlap_factor)
        return tiling

    def _check_generation_flags(self) -> None:
        if self.is_inpaint and self.generation.name != LATEST:
            raise UserError(
                f"--model_type {self.model_type} is for v1.3: no weights of {self.generation.release} take frames"
            )
        if self.tile_overlap_factor is not None and self.generation.tiling is None:
            raise UserError(f"--tile_overlap_factor: the autoencoder of {self.generation.release} has no tiles")

    def _check_condition_flags(self) -> None:
        if not self.is_inpaint:
            for name in CONDITION_FLAGS:
                if getattr(self, name):
                    raise UserError(f"--{name} is for --model_type {' or '.join(INPAINT_TYPES)}")
            return
        if not self.conditional_pixel_values_path:
            raise UserError(f"--model_type {self.model_type} needs --conditional_pixel_values_path FILE.txt")
        if self.caption_refiner:
            raise UserError(
                "--caption_refiner is for --model_type t2v: it invents content that the conditioning frames do not show"
            )
        check_noise_strength(self.noise_strength)
        for frame in self.condition_frames:
            if not -self.num_frames <= frame < self.num_frames:
                raise UserError(
                    f"--condition_frames {frame}: the result has {self.num_frames} frames, 0 to {self.num_frames - 1}"
                )
        if self.condition_frames and self.mask_type is not None:
            raise UserError("--condition_frames says where the images are: leave out --mask_type")

    @property
    def is_inpaint(self) -> bool:
        return self.model_type in INPAINT_TYPES

    @property
    def transformer_class(self) -> Any:
        from opensora import models

        return models.OpenSoraInpaint_v1_3 if self.is_inpaint else getattr(models, self.generation.transformer)

    @property
    def is_image(self) -> bool:
        return self.num_frames == 1

    @property
    def suffix(self) -> str:
        return ".jpg" if self.is_image and self.video_extension in ("mp4", "gif") else f".{self.video_extension}"

    def result_path(self, index: Optional[int], number: Optional[int] = None) -> Path:
        """The file METHOD_INDEX_gsSCALE_sSTEPS[_iNUMBER].mp4 of a prompt's sample, or without index of all samples."""
        words = [self.sample_method, f"gs{self.guidance_scale:g}", f"s{self.num_sampling_steps}"]
        if index is not None:
            words.insert(1, str(index))
        if number is not None and self.num_samples_per_prompt > 1:
            words.append(f"i{number}")
        return Path(self.save_img_path) / ("_".join(words) + self.suffix)

    def scheduler_arguments(self) -> dict:
        """Keyword arguments of `make_scheduler`."""
        return {
            "prediction_type": self.prediction_type,
            "rescale_betas_zero_snr": self.rescale_betas_zero_snr,
            **(V1_5_BETAS if self.v1_5_scheduler else {}),
        }

    def as_metadata(self) -> dict:
        values = {
            **asdict(self),
            "weights": list(self.weights),
            "lora": [str(spec) for spec in self.lora],
            "guidance_interval": list(self.guidance_interval),
            "condition_frames": list(self.condition_frames),
            "timesteps": list(self.chosen_timesteps) or None,
        }
        del values["chosen_timesteps"]
        return values


def parse_options(argv: Optional[Sequence[str]] = None) -> tuple[SampleOptions, argparse.Namespace]:
    """The checked options of a run, and the parsed flags for `device.setup`.

    Raises:
        UserError, OSError: every mistake that is visible before weights are loaded.
    """
    args = parse_flags(
        "Makes videos or images from text, or from text and conditioning frames.",
        (SampleOptions, DeviceOptions),
        argv,
        yaml_file=True,
        defaults=generation_settings,
    )
    args.model_path, args.version = folder_and_generation(args.model_path, args.version)
    return check_weights(from_mapping(SampleOptions, vars(args))), args


def check_weights(options: SampleOptions) -> SampleOptions:
    """The options completed from the config.json of the weights.

    Raises:
        UserError: they contradict the weights, or these each other.
    """
    from opensora.checkpoint.files import find_weights
    from opensora.checkpoint.lora.files import find_lora
    from opensora.models import MT5EncoderModel

    transformer = options.transformer_class.published_config(
        options.model_path, f"--model_path with --model_type {options.model_type}"
    )
    check_autoencoder(options, transformer)
    check_frames(options, transformer)
    if not options.decode_latents:
        for spec in options.lora:
            find_lora(spec.path)
        find_weights(options.ms_checkpoint or options.model_path)
        find_weights(options.text_encoder_name_1)
    if options.is_inpaint or not options.save_latents:
        find_weights(options.ae_path)
    check_attention(options, transformer)
    text = MT5EncoderModel.published_config(options.text_encoder_name_1, "--text_encoder_name_1")
    if transformer.get("caption_channels", text.get("d_model")) != text.get("d_model"):
        raise UserError(
            f"{options.model_path} takes text states of width {transformer['caption_channels']}, "
            f"{options.text_encoder_name_1} gives {text.get('d_model')}"
        )
    options = replace(options, **objective_settings(options, transformer))
    return _with_timesteps(options, options.timesteps) if options.timesteps else options


def _with_timesteps(options: SampleOptions, path: str) -> SampleOptions:
    """The options with the timesteps of a file, which determine the number of steps."""
    from opensora.pipelines.published import make_scheduler

    chosen = read_timesteps(path)
    chosen.check_settings(options, path)
    try:
        make_scheduler(options.generation, options.sample_method, **options.scheduler_arguments()).set_timesteps(
            timesteps=chosen.timesteps
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    steps = len(chosen.timesteps)
    if options.num_sampling_steps not in (steps, _DEFAULTS["num_sampling_steps"]):
        logger.warning(f"{path} has {steps} timesteps: --num_sampling_steps {options.num_sampling_steps} is not used")
    return replace(options, chosen_timesteps=chosen.timesteps, num_sampling_steps=steps)
