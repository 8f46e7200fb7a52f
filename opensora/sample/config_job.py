"""What a config asks to be made: prompts with their references, and the names of the results. Needs no MindSpore."""
from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple, Optional, Sequence

from opensora.pipelines.mask_strategy import check_strategy, parse_strategy
from opensora.pipelines.prompt_syntax import loop_texts, split_overrides
from opensora.pipelines.references import find_reference, split_paths
from opensora.utils.config_utils import check_fields

NEEDED = ("model.type", "vae.type", "text_encoder.type", "scheduler.type", "num_frames", "image_size", "fps",
          "save_dir")
LONGEST_NAME = 150  # bytes of a prompt in a file's name, of which there can be 255


class Request(NamedTuple):
    """One prompt: `index` counts over all prompts, `texts` has one for each clip, `groups` the mask strategy's."""

    index: int
    prompt: str
    texts: tuple
    references: tuple
    groups: tuple


@dataclass(frozen=True)
class Job:
    """The fields of an inference config that say what is made, checked.

    Raises:
        ValueError: a field is missing or cannot be.
    """

    num_frames: int
    image_size: Sequence[int]
    fps: int
    save_dir: str
    frame_interval: int = 1
    divide_fps: bool = False            # the model is told fps / frame_interval, as from Open-Sora v1.2 on
    batch_size: int = 1
    seed: int = 42
    num_sample: int = 1
    sample_name: Optional[str] = None
    prompt_as_path: bool = False
    loop: int = 1
    condition_frame_length: Optional[int] = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Job":
        check_fields(config, NEEDED)
        if config.get("multi_resolution") not in (None, False, "STDiT2"):
            raise ValueError(f"multi_resolution {config['multi_resolution']!r} should be 'STDiT2'")
        return cls(**{name: config[name] for name in cls.__dataclass_fields__ if config.get(name) is not None})

    def __post_init__(self):
        for name in ("num_frames", "fps", "frame_interval", "batch_size", "num_sample", "loop"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} {value!r}: should be a whole number from 1 on")
        if len(self.image_size) != 2 or min(self.image_size) < 8:
            raise ValueError(f"image_size {tuple(self.image_size)}: should be height and width, 8 pixels or more")
        if self.fps < self.frame_interval:
            raise ValueError(f"fps {self.fps} divided by frame_interval {self.frame_interval} is less than 1 frame a "
                             f"second")
        if self.loop > 1 and not (self.condition_frame_length and 1 <= self.condition_frame_length < self.num_frames):
            raise ValueError(f"condition_frame_length {self.condition_frame_length}: with loop {self.loop} it should be "
                             f"from 1 to {self.num_frames - 1}, frames that a clip takes over from the one before")

    @property
    def video_fps(self) -> int:
        """Of the files."""
        return self.fps // self.frame_interval

    @property
    def model_fps(self) -> float:
        return self.fps / self.frame_interval if self.divide_fps else self.fps

    def path(self, request: Request, number: int) -> Path:
        """Of a prompt's `number`-th sample."""
        name = self.sample_name or ("" if self.prompt_as_path else "sample")
        in_name = file_name(request.prompt) if self.prompt_as_path else ""
        name += in_name or f"_{request.index}"  # an empty prompt names no file
        name += "" if self.num_sample == 1 else f"-{number}"
        return Path(self.save_dir) / f"{name}{'.png' if self.num_frames == 1 else '.mp4'}"


def file_name(prompt: str) -> str:
    """The prompt as part of a file's name; one that is too long is cut and gets digits that tell it from others."""
    name = re.sub(r"[/\\\x00-\x1f]", "_", prompt)
    encoded = name.encode()
    if len(encoded) <= LONGEST_NAME:
        return name
    return encoded[:LONGEST_NAME].decode(errors="ignore") + hashlib.sha256(encoded).hexdigest()[:8]


def plan_requests(config: Mapping[str, Any], job: Job, long: bool) -> list[Request]:
    """The requests of a config, in the order of its prompts. References from the web are fetched.

    `long`: prompts may have references and a text for each clip.

    Raises:
        ValueError: prompts, references and mask strategies that do not go together.
        OSError: a reference is not there or cannot be fetched.
    """
    prompts, first = config["prompt"], config.get("first_index", 0)
    if not long:
        return [Request(first + place, prompt, tuple(loop_texts(prompt, 1)), (), ())
                for place, prompt in enumerate(prompts)]
    given = [config.get("reference_path"), config.get("mask_strategy")]
    if given[0] is None:
        given = [None, None]  # a mask strategy means nothing without references
    rows = [[None] * len(prompts) if values is None else list(values) for values in given]
    if {len(row) for row in rows} != {len(prompts)}:
        raise ValueError(f"{len(prompts)} prompts, {len(rows[0])} entries of reference_path and {len(rows[1])} of "
                         f"mask_strategy: there should be one for each prompt; None where there is none")
    def find(path: str) -> Path:
        return find_reference(path, config.get("cache_dir") or "./cache", config.get("allow_local", False))

    return [_plan_one(first + place, prompt, *row, find, job.loop)
            for place, (prompt, *row) in enumerate(zip(prompts, *rows))]


def _plan_one(index: int, prompt: str, reference_path: Optional[str], mask_strategy: Optional[str],
              find: Callable[[str], Path], loop: int) -> Request:
    text, overrides = split_overrides(prompt)
    references = split_paths(overrides.get("reference_path", reference_path))
    groups = parse_strategy(overrides.get("mask_strategy", mask_strategy))
    try:
        check_strategy(groups, len(references), loop)
    except ValueError as error:
        raise ValueError(f"prompt {prompt!r}: {error}") from error
    return Request(index, text, tuple(loop_texts(text, loop)),
                   tuple(find(path) for path in references), tuple(groups))
