"""What a config asks to be made: prompts with their references, and the names of the results. Needs no MindSpore."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

from opensora.config.fields import ClipFields
from opensora.config.mmengine import check_fields
from opensora.config.options import from_mapping
from opensora.errors import UserError
from opensora.pipelines.mask_strategy import check_strategy, parse_strategy
from opensora.pipelines.prompt_syntax import clip_texts, loop_texts, split_overrides
from opensora.pipelines.references import find_reference, split_paths
from opensora.utils.folder_lock import compressed_bytes
from opensora.utils.text_files import check_characters

NEEDED = (
    "model.type",
    "vae.type",
    "text_encoder.type",
    "scheduler.type",
    "num_frames",
    "image_size",
    "fps",
    "save_dir",
)
# Bytes of a prompt in a file name. With `sample_name` and the suffix of temporary files it can have 255.
LONGEST_NAME = 150
DIGEST = 16  # hexadecimal digits that tell prompts apart whose names would be alike
UNSAFE = re.compile(r"^\.|[/\\\x00-\x1f\x7f]")
# Ends that the names of other prompts, of empty prompts and of a prompt's samples have.
RESERVED_END = re.compile(rf"-[0-9a-f]{{{DIGEST}}}$|[-_][0-9]+$")
# Fields that only inference-long.py reads, and the values that mean nothing.
LONG_FIELDS = {"reference_path": None, "mask_strategy": None, "loop": 1, "condition_frame_length": None}


class Request(NamedTuple):
    """One prompt: `index` counts over all prompts, `name` is the prompt in file names, `texts` has one for each clip,
    `groups` the mask strategy's."""

    index: int
    name: str
    prompt: str
    texts: tuple
    references: tuple
    groups: tuple


@dataclass(frozen=True)
class Job(ClipFields):
    """The fields of an inference config that describe the clips, checked, and the names of the results.

    Raises:
        UserError: a field is missing, of another type or out of range.
    """

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Job:
        check_fields(config, NEEDED)
        if config.get("multi_resolution") not in (None, False, "STDiT2"):
            raise UserError(f"multi_resolution {config['multi_resolution']!r} should be 'STDiT2'")
        return from_mapping(cls, {name: value for name, value in config.items() if value is not None})

    @property
    def video_fps(self) -> int:
        """Of the files."""
        return self.fps // self.frame_interval

    @property
    def model_fps(self) -> float:
        return self.fps / self.frame_interval if self.divide_fps else self.fps

    @property
    def bytes_per_sample(self) -> float:
        """About what a result takes on the disk."""
        kept = (self.condition_frame_length or 0) if self.loop > 1 else 0
        return compressed_bytes(self.loop * (self.num_frames - kept) + kept, self.image_size[0] * self.image_size[1])

    def path(self, request: Request, number: int) -> Path:
        """Of a prompt's `number`-th sample."""
        name = self.sample_name or ("" if self.prompt_as_path else "sample")
        name += request.name if self.prompt_as_path and request.name else f"_{request.index}"
        name += "" if self.num_sample == 1 else f"-{number}"
        return Path(self.save_dir) / f"{name}{'.png' if self.num_frames == 1 else '.mp4'}"


def file_name(prompt: str, repeat: int = 0) -> str:
    """The prompt as part of a file's name: itself where it can be, else its readable part and a digest of all of it.

    No two prompts have the same name, and a name depends on nothing but the prompt and `repeat`, which counts the equal
    prompts before it in the list. The name of the empty prompt is empty.

    Raises:
        UserError: json behind the text that cannot be read.
    """
    name = UNSAFE.sub("_", split_overrides(prompt)[0].strip())
    encoded = name.encode()
    if name == prompt and len(encoded) <= LONGEST_NAME and not RESERVED_END.search(name) and not (repeat and name):
        return name
    digest = hashlib.sha256(f"{repeat}:{prompt}".encode()).hexdigest()[:DIGEST]
    return f"{encoded[:LONGEST_NAME].decode(errors='ignore') or '_'}-{digest}"


def file_names(prompts: Sequence[str]) -> list[str]:
    """`file_name` of each prompt of a list."""
    counts: Counter = Counter()
    names = []
    for prompt in prompts:
        names.append(file_name(prompt, counts[prompt]))
        counts[prompt] += 1
    return names


def check_single_clips(config: Mapping[str, Any]) -> None:
    """Raises UserError where a config asks inference.py for what only inference-long.py makes."""
    remedy = "inference.py makes single clips without references; use scripts/inference-long.py"
    for name, default in LONG_FIELDS.items():
        value = config.get(name)
        if value is not None and value != default:
            raise UserError(f"{name} {value!r} (--{name.replace('_', '-')}): {remedy}, or leave it out")
    for prompt in config["prompt"]:
        if split_overrides(prompt)[1]:
            raise UserError(f"prompt {prompt!r} names references: {remedy}, or take away the json behind the text")
        if clip_texts(prompt)[1:]:
            raise UserError(f"prompt {prompt!r} has texts for several clips: {remedy}, or give one text")


def plan_requests(config: Mapping[str, Any], job: Job, long: bool) -> list[Request]:
    """The requests of a config, in the order of its prompts. References from the web are fetched.

    `long`: prompts may have references and a text for each clip.

    Raises:
        UserError: prompts, references and mask strategies that do not go together.
        OSError: a reference is not there or cannot be fetched.
    """
    prompts, first, earlier = config["prompt"], config.get("first_index", 0), config.get("earlier_prompts", [])
    for prompt in (*earlier, *prompts):
        check_characters(prompt, f"prompt {ascii(prompt)}")
    names = file_names([*earlier, *prompts])[len(earlier) :]
    if not long:
        return [
            Request(first + place, name, prompt, tuple(loop_texts(prompt, 1)), (), ())
            for place, (name, prompt) in enumerate(zip(names, prompts))
        ]
    given = [config.get("reference_path"), config.get("mask_strategy")]
    rows = [[None] * len(prompts) if values is None else list(values) for values in given]
    if {len(row) for row in rows} != {len(prompts)}:
        raise UserError(
            f"{len(prompts)} prompts, {len(rows[0])} entries of reference_path and {len(rows[1])} of "
            f"mask_strategy: there should be one for each prompt; None where there is none"
        )

    def find(path: str) -> Path:
        return find_reference(path, config.get("cache_dir") or "./cache", config.get("allow_local", False))

    return [
        _plan_one(first + place, name, prompt, *row, find, job.loop)
        for place, (name, prompt, *row) in enumerate(zip(names, prompts, *rows))
    ]


def without_effect(job: Job, requests: Sequence[Request]) -> Iterator[str]:
    """What is asked of a long video and has no effect with this many clips, a sentence each."""
    if job.loop == 1 and job.condition_frame_length:
        yield f"condition_frame_length {job.condition_frame_length} has no effect: loop is 1"
    for request in requests:
        for start in [start for start, _ in clip_texts(request.prompt) if start >= job.loop]:
            yield f"prompt {request.index} has a text from clip {start} on, but loop is {job.loop}, counted from 0"
        for group in [group for group in request.groups if group.clip >= job.loop]:
            yield (
                f"prompt {request.index} has a mask strategy for clip {group.clip}, but loop is {job.loop}, "
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
        raise UserError(f"prompt {prompt!r}: the json behind its text has neither reference_path nor mask_strategy")
    references = split_paths(overrides.get("reference_path", reference_path))
    groups = parse_strategy(overrides.get("mask_strategy", mask_strategy))
    try:
        check_strategy(groups, len(references), loop)
    except ValueError as error:
        raise UserError(f"prompt {prompt!r}: {error}") from error
    return Request(
        index, name, text, tuple(loop_texts(text, loop)), tuple(find(path) for path in references), tuple(groups)
    )
