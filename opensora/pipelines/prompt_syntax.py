"""What a prompt can hold besides its text: references as json behind it, and a text for each clip of a long video.

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
    """The text as the models of Open-Sora v1.1 know texts: cleaned, and what came to light by that once more."""
    return clean_caption(clean_caption(text, support_chinese=False), support_chinese=False)


def split_overrides(prompt: str) -> tuple[str, dict[str, Optional[str]]]:
    """The prompt's text, and `reference_path` and `mask_strategy` where a json object behind it has them.

    Braces that hold no json are text.

    Raises:
        UserError: an object that was meant as such, but is no json; or values that are no texts.
    """
    end = prompt.rstrip()
    for place in (match.start() for match in re.finditer("{", end)) if end.endswith("}") else ():
        try:
            found = json.loads(end[place:])
        except ValueError:
            continue
        return prompt[:place], {name: _joined(found[name], prompt) for name in OVERRIDES if name in found}
    if end.endswith("}") and re.search(r"\{[^{}]*(" + "|".join(OVERRIDES) + ")", end):
        raise UserError(
            f"prompt {prompt!r}: what stands behind the text is no json; it should look like "
            f'{{"reference_path": "a.png", "mask_strategy": "0"}}'
        )
    return prompt, {}


def _joined(value: Any, prompt: str) -> Optional[str]:
    """A list is as good as its parts joined by `;`."""
    if value is None:
        return None
    parts = value if isinstance(value, list) else [value]
    if not all(isinstance(part, str) for part in parts):
        raise UserError(f'prompt {prompt!r}: {value!r} should be a text, such as "a.png;b.png" or "0;0,1,0,-1,1"')
    return ";".join(parts)


def clip_texts(prompt: str) -> list[tuple[int, str]]:
    """The texts of `|start|text|start|text ...` with the clips they begin with; any other prompt is one text."""
    if not prompt.startswith("|0|"):
        return [(0, prompt)]
    _, *parts = re.split(r"\|(\d+)\|", prompt)
    return [(int(start), text) for start, text in zip(parts[::2], parts[1::2])]


def loop_texts(prompt: str, loop: int) -> list[str]:
    """The cleaned text of each of `loop` clips: of `|start|text|start|text ...` a text serves from its start on.

    Raises:
        UserError: starts that do not rise from 0.
    """
    starts, texts = zip(*clip_texts(prompt))
    starts, texts = list(starts), [clean_prompt(text) for text in texts]
    if starts != sorted(set(starts)):
        raise UserError(
            f"prompt {prompt!r}: its texts should begin with clips 0 < ... in rising order, not with "
            f"{', '.join(map(str, starts))}"
        )
    ends = [min(start, loop) for start in [*starts[1:], loop]]
    return [text for start, end, text in zip(starts, ends, texts) for _ in range(start, end)]
