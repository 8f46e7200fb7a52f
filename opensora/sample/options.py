"""The flags of sample.py, checked before any weight is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Optional

from opensora import device
from opensora.checkpoint.files import find_weights
from opensora.datasets.masks import MaskType, check_noise_strength
from opensora.errors import UserError
from opensora.models import MT5EncoderModel, OpenSoraInpaint_v1_3, OpenSoraT2V_v1_3, WFVAEModel
from opensora.models.vaes import VAES
from opensora.pipelines.conditioning import MAX_HXW
from opensora.pipelines.prompts import NEGATIVE, POSITIVE, check_template
from opensora.pipelines.sizes import check_size
from opensora.sample.prompt_files import PROMPT_COLUMNS, pair, prompt_entries, read_prompts
from opensora.schedulers import PREDICTION_TYPES, SCHEDULERS
from opensora.utils.cli import CommandParser, parse_with_config
from opensora.utils.text_files import check_characters

INPAINT_TYPES = ("inpaint", "i2v")  # two published names of the same thing
CONDITION_FLAGS = ("conditional_pixel_values_path", "mask_type", "crop_for_hw", "noise_strength", "keep_condition")
V1_5_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass(frozen=True)
class SampleOptions:
    """One run of sample.py; the names are those of the flags."""

    model_type: str
    model_path: str
    version: str
    ms_checkpoint: Optional[str]
    ae: str
    ae_path: str
    text_encoder_name_1: str
    text_prompt: Sequence[str]
    prompt_template: str
    negative_prompt: str
    caption_refiner: Optional[str]
    conditional_pixel_values_path: Optional[str]
    mask_type: Optional[str]
    crop_for_hw: bool
    max_hxw: int
    noise_strength: float
    keep_condition: bool
    save_img_path: str
    num_frames: int
    height: int
    width: int
    fps: int
    guidance_scale: float
    num_sampling_steps: int
    max_sequence_length: int
    num_samples_per_prompt: int
    sample_method: str
    prediction_type: Optional[str]
    rescale_betas_zero_snr: bool
    v1_5_scheduler: bool
    sparse1d: bool
    sparse_n: Optional[int]
    enable_tiling: bool
    save_memory: bool
    save_latents: bool
    decode_latents: bool
    video_extension: str
    overwrite: bool
    seed: int
    sp_size: int
    sp: bool

    @property
    def is_inpaint(self) -> bool:
        return self.model_type in INPAINT_TYPES

    @property
    def transformer_class(self) -> type:
        return OpenSoraInpaint_v1_3 if self.is_inpaint else OpenSoraT2V_v1_3

    @property
    def is_image(self) -> bool:
        return self.num_frames == 1

    @property
    def suffix(self) -> str:
        return ".jpg" if self.is_image and self.video_extension in ("mp4", "gif") else f".{self.video_extension}"

    def scheduler_arguments(self) -> dict:
        """Keyword arguments of `get_scheduler`."""
        return {
            "prediction_type": self.prediction_type,
            "rescale_betas_zero_snr": self.rescale_betas_zero_snr,
            **(V1_5_BETAS if self.v1_5_scheduler else {}),
        }

    def as_metadata(self) -> dict:
        return asdict(self)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    weights = parser.add_argument_group("weights")
    weights.add_argument(
        "--model_type",
        choices=("t2v", *INPAINT_TYPES),
        default="t2v",
        help="t2v: text alone; inpaint or i2v: text and given frames",
    )
    weights.add_argument("--model_path", required=True, help="folder of the diffusion transformer")
    weights.add_argument("--version", choices=("v1_3",), default="v1_3", help="generation of the weights")
    weights.add_argument("--ms_checkpoint", help="transformer weights of this file instead of those in --model_path")
    weights.add_argument("--ae", choices=tuple(VAES), default="WFVAEModel_D8_4x8x8", help="name of the autoencoder")
    weights.add_argument("--ae_path", required=True, help="folder of the autoencoder")
    weights.add_argument("--text_encoder_name_1", required=True, help="folder of mT5 or T5 v1.1, with its tokenizer")
    weights.add_argument("--caption_refiner", help="folder of a language model that rewrites the prompts first")

    output = parser.add_argument_group("what to make")
    output.add_argument(
        "--text_prompt",
        nargs="+",
        required=True,
        help="prompts, or one file of them: .txt with one prompt per line, .csv with a column or "
        f".json or .jsonl with objects that have {' or '.join(PROMPT_COLUMNS)}",
    )
    output.add_argument(
        "--prompt_template",
        default=POSITIVE,
        help="what is written around each prompt, {} being the prompt; default: as the published weights were prompted",
    )
    output.add_argument(
        "--negative_prompt",
        default=NEGATIVE,
        help="what guidance leads away from; default: as with the published weights",
    )
    output.add_argument("--save_img_path", default="./sample_videos", help="folder for the results")
    output.add_argument("--num_frames", type=int, default=93, help="4n+1; 1 makes images")
    output.add_argument("--height", type=int, default=352, help="of the frames in pixels, a multiple of 32")
    output.add_argument("--width", type=int, default=640, help="of the frames in pixels, a multiple of 32")
    output.add_argument("--fps", type=int, default=18, help="frame rate of the videos written")
    output.add_argument(
        "--num_samples_per_prompt", type=int, default=1, help="results for each prompt, which differ in their noise"
    )
    output.add_argument(
        "--video_extension", choices=("mp4", "gif", "jpg", "png"), default="mp4", help="jpg and png are for images"
    )
    output.add_argument("--overwrite", action="store_true", help="make again what is there already")

    condition = parser.add_argument_group("given frames, with --model_type inpaint or i2v")
    condition.add_argument(
        "--conditional_pixel_values_path",
        help="a text file: line i has the images, separated by commas, or the video for the prompt "
        "in line i; or for a single prompt such a line itself",
    )
    condition.add_argument(
        "--mask_type",
        choices=tuple(MaskType.__members__),
        help="which frames are given; default: of one image the first, of two the first and the "
        "last, of a video its first half",
    )
    condition.add_argument(
        "--crop_for_hw",
        action="store_true",
        help="make everything --height x --width; else the size follows from the files",
    )
    condition.add_argument("--max_hxw", type=int, default=MAX_HXW, help="most pixels of a frame without --crop_for_hw")
    condition.add_argument("--noise_strength", type=float, default=0.0, help="of noise on given frames, 0 to 1")
    condition.add_argument(
        "--keep_condition",
        action="store_true",
        help="put the given frames themselves into the result, which else only resembles them",
    )

    sampling = parser.add_argument_group("sampling")
    sampling.add_argument(
        "--sample_method", choices=tuple(SCHEDULERS), default="EulerAncestralDiscrete", help="the sampler"
    )
    sampling.add_argument("--num_sampling_steps", type=int, default=100, help="steps of the sampler")
    sampling.add_argument("--guidance_scale", type=float, default=7.5, help="1: no guidance")
    sampling.add_argument("--max_sequence_length", type=int, default=512, help="tokens of text")
    sampling.add_argument(
        "--prediction_type",
        choices=PREDICTION_TYPES,
        help="what the weights predict; default: what their config.json says, else v_prediction",
    )
    sampling.add_argument(
        "--rescale_betas_zero_snr",
        action="store_true",
        help="noise schedule with zero signal at the last step, as the published weights need it",
    )
    sampling.add_argument("--v1_5_scheduler", action="store_true", help="the noise schedule of Open-Sora-Plan v1.5")
    sampling.add_argument("--sparse1d", action="store_true", help="expect weights with skiparse attention")
    sampling.add_argument("--sparse_n", type=int, help="expect weights with this skiparse factor")

    memory = parser.add_argument_group("memory and stages")
    memory.add_argument(
        "--enable_tiling",
        action="store_true",
        help="decode in chunks along time also where that changes the result (group norm); "
        "with layer norm, as published, it changes nothing and is always done",
    )
    memory.add_argument(
        "--save_memory",
        action="store_true",
        help="text encoder, transformer and autoencoder on the device one after the other",
    )
    memory.add_argument("--save_latents", action="store_true", help="stop before decoding; write latents as .npy")
    memory.add_argument("--decode_latents", action="store_true", help="only decode what --save_latents wrote")
    memory.add_argument(
        "--sp_size", type=int, default=1, help="processes of msrun that share each video; the others make other videos"
    )
    memory.add_argument("--sp", action="store_true", help="all processes share each video")
    device.add_arguments(parser)


def parse_options(argv: Optional[Sequence[str]] = None) -> tuple[SampleOptions, argparse.Namespace]:
    """The checked options of a run, and the parsed flags that `device.setup` takes.

    Raises:
        UserError, OSError: anything wrong that shows before weights are loaded.
    """
    parser = CommandParser(description="Makes videos or images from text, and from given frames.")
    add_arguments(parser)
    args = parse_with_config(parser, argv)
    names = {field.name for field in fields(SampleOptions)}
    options = SampleOptions(**{name: value for name, value in vars(args).items() if name in names})
    return check_options(options), args


def check_options(options: SampleOptions) -> SampleOptions:
    """The options with what the weights' config.json says filled in; ValueError if they contradict it or each other."""
    channels, temporal_stride, _ = VAES[options.ae]
    check_size(options.num_frames, options.height, options.width, temporal_stride)
    for name in ("num_sampling_steps", "num_samples_per_prompt", "max_sequence_length", "fps", "sp_size"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} must be 1 or more, not {getattr(options, name)}")
    if options.video_extension in ("jpg", "png") and not options.is_image:
        raise UserError(f"--video_extension {options.video_extension} is for images: use --num_frames 1, or mp4 or gif")
    if options.save_latents and options.decode_latents:
        raise UserError("--save_latents stops where --decode_latents goes on: use one of them")

    check_template(options.prompt_template)
    for name in ("prompt_template", "negative_prompt"):
        check_characters(getattr(options, name), f"--{name}")
    if options.sp and options.sp_size > 1:
        raise UserError("--sp is --sp_size with the number of all processes: use one of them")
    _check_condition_flags(options)

    transformer = options.transformer_class.published_config(
        options.model_path, f"--model_path with --model_type {options.model_type}"
    )
    if transformer.get("in_channels", channels) != channels:
        raise UserError(
            f"{options.model_path} works on latents of {transformer['in_channels']} channels, "
            f"--ae {options.ae} makes {channels}"
        )
    vae = WFVAEModel.published_config(options.ae_path, "--ae_path")
    if vae.get("latent_dim", 8) != channels:
        raise UserError(
            f"{options.ae_path} holds an autoencoder of {vae.get('latent_dim', 8)} latent channels, "
            f"--ae {options.ae} has {channels}"
        )
    if not options.decode_latents:
        find_weights(options.ms_checkpoint or options.model_path)
        find_weights(options.text_encoder_name_1)
    if options.is_inpaint or not options.save_latents:
        find_weights(options.ae_path)
    recorded = transformer.get("prediction_type")
    _agree(options, "prediction_type", options.prediction_type, recorded)
    _agree(options, "sparse1d", options.sparse1d or None, transformer.get("sparse1d", False))
    _agree(options, "sparse_n", options.sparse_n, transformer.get("sparse_n"))
    text = MT5EncoderModel.published_config(options.text_encoder_name_1, "--text_encoder_name_1")
    if transformer.get("caption_channels", text.get("d_model")) != text.get("d_model"):
        raise UserError(
            f"{options.model_path} takes text states of width {transformer['caption_channels']}, "
            f"{options.text_encoder_name_1} gives {text.get('d_model')}"
        )
    return replace(options, prediction_type=options.prediction_type or recorded or "v_prediction")


def _check_condition_flags(options: SampleOptions) -> None:
    if not options.is_inpaint:
        for name in CONDITION_FLAGS:
            if getattr(options, name):
                raise UserError(f"--{name} is for --model_type {' or '.join(INPAINT_TYPES)}")
        return
    if not options.conditional_pixel_values_path:
        raise UserError(f"--model_type {options.model_type} needs --conditional_pixel_values_path FILE.txt")
    if options.caption_refiner:
        raise UserError("--caption_refiner is for --model_type t2v: it invents what the given frames do not show")
    check_noise_strength(options.noise_strength)


def _agree(options: SampleOptions, name: str, given, recorded) -> None:
    if given is not None and recorded is not None and given != recorded:
        raise UserError(
            f"--{name} {given} contradicts {options.model_path}/config.json, which has {recorded}: "
            f"the result would be noise; leave the flag out"
        )


def read_inputs(options: SampleOptions) -> list[tuple[str, tuple]]:
    """The prompts of a run, each with the files of its condition (none for text to video).

    Raises:
        FileNotFoundError, UserError: as `read_prompts`; a prompt without condition, or the other way round.
    """
    if not options.is_inpaint:
        return [(prompt, ()) for prompt in read_prompts(options.text_prompt)]
    return pair(prompt_entries(options.text_prompt), options.conditional_pixel_values_path)
