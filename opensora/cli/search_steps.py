"""opensora search-steps: the timesteps that make a short run most similar to a long one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

from opensora.config.command_line import parse_flags
from opensora.config.device import DeviceOptions
from opensora.config.options import from_mapping
from opensora.sample.options import SampleOptions, check_weights
from opensora.sample.search_options import SearchOptions


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_flags(
        "Searches for the timesteps of a few steps whose result is nearest to that of a long run.",
        (SearchOptions, DeviceOptions),
        argv,
        yaml_file=True,
    )
    search = from_mapping(SearchOptions, vars(args))
    options = check_weights(from_mapping(SampleOptions, vars(args), num_sampling_steps=search.steps, save_latents=True))
    from opensora import device  # MindSpore is imported after the flags are checked
    from opensora.sample.search_job import search_timesteps

    search_timesteps(search, options, device.setup(args))
