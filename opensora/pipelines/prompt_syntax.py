"""Prompt syntax: references as JSON after the text, and a text for each clip of a long video.

A wave.{"reference_path": "cliff.png", "mask_strategy": "0"}
|0|a jeep in the forest|2|a jeep in the desert
"""

from __future__ import annotations

import json
import re
from typing import Any, Optional

from opensora.datasets.t2v.text_cleaning import clean_caption
from opensora.errors import UserError

OVERRIDES = ("reference_path", "mask_strategy")


def clean_prompt(text: str) -> str:
    """The text cleaned twice, as the Open-Sora v1.1 models were trained: the first pass may expose more to clean."""
    return clean_caption(clean_caption(text, support_chinese=False), support_chinese=False)


def split_overrides(prompt: str) -> tuple[str, dict[str, Optional[str]]]:
    """The prompt's text, and `reference_path` and `mask_strategy` from the JSON object after it, if any.

    Braces without valid JSON belong to the text.

    Raises:
        UserError: an object with these names that is not valid JSON, or values that are not strings.
    """
    end = prompt.rstrip()
    for start in (match.start() for match in re.finditer("{", end)) if end.endswith("}") else ():
        try:
            found = json.loads(end[start:])
        except ValueError:
            continue
        return prompt[:start], {name: _joined(found[name], prompt) for name in OVERRIDES if name in found}
    if end.endswith("}") and re.search(r"\{[^{}]*(" + "|".join(OVERRIDES) + ")", end):
        raise UserError(
            f"prompt {prompt!r}: invalid JSON after the text; it should look like "
            f'{{"reference_path": "a.png", "mask_strategy": "0"}}'
        )
    return prompt, {}


def _joined(value: Any, prompt: str) -> Optional[str]:
    """A string; the items of a list are joined by `;`."""
    if value is None:
        return None
    items = value if isinstance(value, list) else [value]
    if not all(isinstance(item, str) for item in items):
        raise UserError(f'prompt {prompt!r}: {value!r} should be a string, such as "a.png;b.png" or "0;0,1,0,-1,1"')
    return ";".join(items)


def clip_texts(prompt: str) -> list[tuple[int, str]]:
    """The texts of `|clip|text|clip|text ...` with the clips that they start at; any other prompt is one text."""
    if not prompt.startswith("|0|"):
        return [(0, prompt)]
    _, *fields = re.split(r"\|(\d+)\|", prompt)
    return [(int(start), text) for start, text in zip(fields[::2], fields[1::2])]


def loop_texts(prompt: str, loop: int) -> list[str]:
    """The cleaned text of each of `loop` clips; each text of `|clip|text|clip|text ...` applies until the next one.

    Raises:
        UserError: clip numbers that do not increase from 0.
    """
    pairs = clip_texts(prompt)
    starts, texts = [start for start, _ in pairs], [clean_prompt(text) for _, text in pairs]
    if starts != sorted(set(starts)):
        raise UserError(
            f"prompt {prompt!r}: the clip numbers of its texts should increase from 0, not be "
            f"{', '.join(map(str, starts))}"
        )
    ends = [min(start, loop) for start in [*starts[1:], loop]]
    return [text for start, end, text in zip(starts, ends, texts) for _ in range(start, end)]
