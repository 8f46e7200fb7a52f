"""The options of inference configs: prompts with their references, and output file names. Does not import MindSpore."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

from opensora.config.fields import ClipFields
from opensora.config.mmengine import check_fields
from opensora.config.options import from_mapping
from opensora.errors import UserError
from opensora.pipelines.mask_strategy import MaskGroup, check_strategy, parse_strategy
from opensora.pipelines.prompt_syntax import clip_texts, loop_texts, split_overrides
from opensora.pipelines.references import find_reference, split_paths
from opensora.utils.folder_lock import compressed_bytes
from opensora.utils.text_files import check_characters

REQUIRED = (
    "model.type",
    "vae.type",
    "text_encoder.type",
    "scheduler.type",
    "num_frames",
    "image_size",
    "fps",
    "save_dir",
)
# Maximum bytes of a prompt in a file name; file systems allow 255 with `sample_name` and temporary suffixes.
MAX_NAME = 150
DIGEST = 16  # hexadecimal digits that distinguish prompts with equal names
UNSAFE = re.compile(r"^\.|[/\\\x00-\x1f\x7f]")
# Suffixes that names with a digest, of empty prompts and of a prompt's further samples have.
RESERVED_END = re.compile(rf"-[0-9a-f]{{{DIGEST}}}$|[-_][0-9]+$")
# Fields that only inference-long.py reads, with the values that have no effect.
LONG_FIELDS = {"reference_path": None, "mask_strategy": None, "loop": 1, "condition_frame_length": None}


@dataclass(frozen=True)
class Request:
    """One prompt.

    `index` counts all prompts, `name` represents the prompt in file names, `texts` has one text per clip, `groups` are
    those of the mask strategy.
    """

    index: int
    name: str
    prompt: str
    texts: tuple[str, ...]
    references: tuple[Path, ...]
    groups: tuple[MaskGroup, ...]


@dataclass(frozen=True)
class InferenceOptions(ClipFields):
    """The checked fields of an inference config that describe the output, and the names of the results.

    Raises:
        UserError: a field is missing or invalid.
    """

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> InferenceOptions:
        check_fields(config, REQUIRED)
        if config.get("multi_resolution") not in (None, False, "STDiT2"):
            raise UserError(f"multi_resolution {config['multi_resolution']!r} should be 'STDiT2'")
        return from_mapping(cls, {name: value for name, value in config.items() if value is not None})

    @property
    def video_fps(self) -> int:
        """Frame rate of the output files."""
        return self.fps // self.frame_interval

    @property
    def model_fps(self) -> float:
        """Frame rate that the model is conditioned on."""
        return self.fps / self.frame_interval if self.divide_fps else self.fps

    @property
    def bytes_per_sample(self) -> float:
        """Estimated file size of one result."""
        overlap = (self.condition_frame_length or 0) if self.loop > 1 else 0
        height, width = self.image_size
        return compressed_bytes(self.loop * (self.num_frames - overlap) + overlap, height * width)

    def path(self, request: Request, number: int) -> Path:
        """The output file of a prompt's `number`-th sample."""
        name = self.sample_name or ("" if self.prompt_as_path else "sample")
        name += request.name if self.prompt_as_path and request.name else f"_{request.index}"
        name += "" if self.num_sample == 1 else f"-{number}"
        return Path(self.save_dir) / f"{name}{'.png' if self.num_frames == 1 else '.mp4'}"


def file_name(prompt: str, repeat: int = 0) -> str:
    """The prompt as a component of file names: the prompt itself if possible, else a readable prefix and a digest.

    Names are unique and depend only on the prompt and on `repeat`, the number of equal prompts before it in the list.
    The name of the empty prompt is empty.

    Raises:
        UserError: invalid JSON after the text.
    """
    name = UNSAFE.sub("_", split_overrides(prompt)[0].strip())
    encoded = name.encode()
    if name == prompt and len(encoded) <= MAX_NAME and not RESERVED_END.search(name) and not (repeat and name):
        return name
    digest = hashlib.sha256(f"{repeat}:{prompt}".encode()).hexdigest()[:DIGEST]
    return f"{encoded[:MAX_NAME].decode(errors='ignore') or '_'}-{digest}"


def file_names(prompts: Sequence[str]) -> list[str]:
    """`file_name` of each prompt of a list."""
    counts: Counter = Counter()
    names = []
    for prompt in prompts:
        names.append(file_name(prompt, counts[prompt]))
        counts[prompt] += 1
    return names


def check_single_clips(config: Mapping[str, Any]) -> None:
    """Raises UserError if a config for inference.py uses a feature of inference-long.py."""
    remedy = "inference.py generates single clips without references; use scripts/inference-long.py"
    for name, default in LONG_FIELDS.items():
        value = config.get(name)
        if value is not None and value != default:
            raise UserError(f"{name} {value!r} (--{name.replace('_', '-')}): {remedy}, or leave it out")
    for prompt in config["prompt"]:
        if split_overrides(prompt)[1]:
            raise UserError(f"prompt {prompt!r} has references: {remedy}, or remove the JSON after the text")
        if clip_texts(prompt)[1:]:
            raise UserError(f"prompt {prompt!r} has texts for several clips: {remedy}, or give one text")


def plan_requests(config: Mapping[str, Any], options: InferenceOptions, long: bool) -> list[Request]:
    """The requests of a config, in the order of its prompts. Downloads references that are URLs.

    Args:
        long: prompts may have references and a text for each clip.

    Raises:
        UserError: inconsistent prompts, references and mask strategies.
        OSError: a reference does not exist or cannot be downloaded.
    """
    prompts, first, earlier = config["prompt"], config.get("first_index", 0), config.get("earlier_prompts", [])
    for prompt in (*earlier, *prompts):
        check_characters(prompt, f"prompt {ascii(prompt)}")
    names = file_names([*earlier, *prompts])[len(earlier) :]
    if not long:
        return [
            Request(first + i, name, prompt, tuple(loop_texts(prompt, 1)), (), ())
            for i, (name, prompt) in enumerate(zip(names, prompts))
        ]
    fields = (config.get("reference_path"), config.get("mask_strategy"))
    paths, strategies = ([None] * len(prompts) if values is None else list(values) for values in fields)
    if not len(paths) == len(strategies) == len(prompts):
        raise UserError(
            f"{len(prompts)} prompts, {len(paths)} entries of reference_path and {len(strategies)} of "
            f"mask_strategy: give one entry per prompt, None for a prompt without"
        )

    def find(path: str) -> Path:
        return find_reference(path, config.get("cache_dir") or "./cache", config.get("allow_local", False))

    return [
        _plan_one(first + i, name, prompt, path, strategy, find, options.loop)
        for i, (name, prompt, path, strategy) in enumerate(zip(names, prompts, paths, strategies))
    ]


def without_effect(options: InferenceOptions, requests: Sequence[Request]) -> Iterator[str]:
    """Yields a note for each setting of a long video that has no effect with this number of clips."""
    if options.loop == 1 and options.condition_frame_length:
        yield f"condition_frame_length {options.condition_frame_length} has no effect: loop is 1"
    for request in requests:
        for start in [start for start, _ in clip_texts(request.prompt) if start >= options.loop]:
            yield f"prompt {request.index} has a text from clip {start} on, but loop is {options.loop}, counted from 0"
        for group in [group for group in request.groups if group.clip >= options.loop]:
            yield (
                f"prompt {request.index} has a mask strategy for clip {group.clip}, but loop is {options.loop}, "
                f"counted from 0"
            )


def _plan_one(
    index: int,
    name: str,
    prompt: str,
    reference_path: Optional[str],
    mask_strategy: Optional[str],
    find: Callable[[str], Path],
    loop: int,
) -> Request:
    text, overrides = split_overrides(prompt)
    if text != prompt and not overrides:
        raise UserError(f"prompt {prompt!r}: the JSON after its text has neither reference_path nor mask_strategy")
    references = split_paths(overrides.get("reference_path", reference_path))
    groups = parse_strategy(overrides.get("mask_strategy", mask_strategy))
    try:
        check_strategy(groups, len(references), loop)
    except ValueError as error:
        raise UserError(f"prompt {prompt!r}: {error}") from error
    return Request(
        index, name, text, tuple(loop_texts(text, loop)), tuple(find(path) for path in references), tuple(groups)
    )
