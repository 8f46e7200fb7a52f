"""The options of search_steps.py: those of sample.py that determine the latents, and its own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Optional

from opensora.checkpoint.files import find_weights
from opensora.config.command_line import parse_flags
from opensora.config.device import DeviceOptions
from opensora.config.options import from_mapping, option, option_of
from opensora.errors import UserError
from opensora.sample.generation import folder_and_generation, generation_settings
from opensora.sample.options import SampleOptions, check_weights


def _of_sample(name: str, **changes: Any) -> Any:
    return option_of(SampleOptions, name, **changes)


_search = partial(option, group="search")


@dataclass(frozen=True)
class SearchOptions:
    """One search for the timesteps of a number of steps.

    Raises:
        UserError: values out of range.
    """

    model_path: str = _of_sample("model_path")
    ae_path: str = _of_sample("ae_path")
    text_encoder_name_1: str = _of_sample("text_encoder_name_1")
    text_prompt: Sequence[str] = _of_sample("text_prompt")
    steps: int = _search(help="steps to choose timesteps for")
    long_steps: int = _search(100, "steps of the long run, whose result is the target")
    output: Optional[str] = _search(
        None, "file for the timesteps; default: timesteps_METHOD_STEPS.json beside the weights", metavar="FILE"
    )
    model_type: str = _of_sample("model_type")
    version: str = _of_sample("version")
    ms_checkpoint: Optional[str] = _of_sample("ms_checkpoint")
    ae: str = _of_sample("ae")
    text_encoder_device: Optional[str] = _of_sample("text_encoder_device")
    prompt_template: str = _of_sample("prompt_template")
    negative_prompt: str = _of_sample("negative_prompt")
    num_frames: int = _of_sample("num_frames")
    height: int = _of_sample("height")
    width: int = _of_sample("width")
    num_samples_per_prompt: int = _of_sample("num_samples_per_prompt")
    conditional_pixel_values_path: Optional[str] = _of_sample("conditional_pixel_values_path")
    mask_type: Optional[str] = _of_sample("mask_type")
    crop_for_hw: bool = _of_sample("crop_for_hw")
    max_hxw: int = _of_sample("max_hxw")
    noise_strength: float = _of_sample("noise_strength")
    sample_method: str = _of_sample("sample_method")
    guidance_scale: float = _of_sample("guidance_scale")
    guidance_interval: tuple[float, float] = _of_sample("guidance_interval")
    max_sequence_length: int = _of_sample("max_sequence_length")
    prediction_type: Optional[str] = _of_sample("prediction_type")
    rescale_betas_zero_snr: bool = _of_sample("rescale_betas_zero_snr")
    v1_5_scheduler: bool = _of_sample("v1_5_scheduler")
    memory: Optional[int] = _of_sample("memory")
    weights: Sequence[str] = _of_sample("weights")

    def __post_init__(self):
        if self.steps < 2:
            raise UserError(f"--steps {self.steps}: a single step has nothing to choose; give 2 or more")
        if self.long_steps <= self.steps:
            raise UserError(f"--long_steps {self.long_steps} should be more than --steps {self.steps}")

    @property
    def path(self) -> Path:
        """The file for the timesteps."""
        if self.output:
            return Path(self.output)
        weights = find_weights(self.ms_checkpoint or self.model_path)
        return weights.with_name(f"timesteps_{self.sample_method}_{self.steps}.json")


def parse_search(argv: Optional[Sequence[str]] = None) -> tuple[SearchOptions, SampleOptions, argparse.Namespace]:
    """The options of a search, those of sample.py with the same flags, and the parsed flags for `device.setup`.

    Raises:
        UserError, OSError: every mistake that is visible before weights are loaded.
    """
    args = parse_flags(
        "Searches for the timesteps of a few steps whose result is nearest to that of a long run.",
        (SearchOptions, DeviceOptions),
        argv,
        yaml_file=True,
        defaults=generation_settings,
    )
    args.model_path, args.version = folder_and_generation(args.model_path, None)
    search = from_mapping(SearchOptions, vars(args))
    options = from_mapping(SampleOptions, vars(args), num_sampling_steps=search.steps, save_latents=True)
    return search, check_weights(options), args
