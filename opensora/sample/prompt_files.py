"""What --text_prompt and --conditional_pixel_values_path mean: texts, or files with one entry per line.

Entry i of one file belongs to entry i of the other, so blank entries count while the files are read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from opensora.datasets.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from opensora.datasets.t2v.annotations import read_items
from opensora.errors import UserError
from opensora.sample.options import PROMPT_COLUMNS, SampleOptions
from opensora.utils.text_files import check_characters, open_csv, open_text, read_text

LINES, TABLES, JSON = (".txt", ".text", ".md", ".list"), (".csv",), (".json", ".jsonl")
# Text files that are not read; the name of one is not a prompt either.
OTHERS = (
    ".tsv",
    ".yaml",
    ".yml",
    ".toml",
    ".xml",
    ".html",
    ".rtf",
    ".doc",
    ".docx",
    ".xlsx",
    ".pdf",
    ".parquet",
    ".pkl",
)


class Entries(NamedTuple):
    """`texts` of `source`; of a file some may be blank, but not the last."""

    source: str
    texts: list
    is_file: bool

    @property
    def count(self) -> int:
        return sum(map(self.has, range(len(self.texts))))

    def has(self, place: int) -> bool:
        return place < len(self.texts) and (bool(self.texts[place]) or not self.is_file)


def read_prompts(text_prompt: Sequence[str]) -> list[str]:
    """The prompts that --text_prompt means; blank lines of a file are left out.

    Raises:
        FileNotFoundError: the file is not there.
        UserError: a file without prompts, of another form or encoding; several files; half a surrogate pair.
    """
    entries = prompt_entries(text_prompt)
    return [text for place, text in enumerate(entries.texts) if entries.has(place)]


def prompt_entries(text_prompt: Sequence[str]) -> Entries:
    """As `read_prompts`, with blank lines."""
    files = [text for text in text_prompt if _names_file(text)]
    if files and len(text_prompt) > 1:
        raise UserError(
            f"--text_prompt takes prompts or one file; {files[0]!r} names a file, and there are "
            f"{len(text_prompt)} of them: join the files"
        )
    if files:
        return _checked(_file_entries(files[0], "prompts", _prompts_of(Path(files[0]))))
    return _checked(Entries("--text_prompt", list(text_prompt), False))


def read_prompt_file(path: str) -> list[str]:
    """The prompts of a file, blank ones too, except at its end; raises as `read_prompts`."""
    return _checked(_file_entries(path, "prompts", _prompts_of(Path(path)))).texts


def read_inputs(options: SampleOptions) -> list[tuple[str, tuple]]:
    """The prompts of a run of sample.py, each with the files of its conditioning frames (none for text to video).

    Raises:
        FileNotFoundError, UserError: as `read_prompts`; a prompt without conditioning frames, or the other way round.
    """
    if not options.is_inpaint:
        return [(prompt, ()) for prompt in read_prompts(options.text_prompt)]
    return pair(prompt_entries(options.text_prompt), options.conditional_pixel_values_path or "")


def check_is_no_file(prompt: str) -> None:
    """Raises UserError for the name of a file where a prompt should be."""
    if _has_suffix_of_text(prompt) and not any(letter.isspace() for letter in prompt):
        raise UserError(f"prompt {prompt!r} is the name of a file: use --prompt-path (prompt_path in a config)")


def pair(prompts: Entries, source: str) -> list[tuple[str, tuple]]:
    """Each prompt with the files of its condition; `source` is a file of conditions or a condition itself.

    Raises:
        FileNotFoundError: no such file.
        UserError: an entry without its partner.
    """
    conditions = _condition_entries(source)
    places = range(max(len(prompts.texts), len(conditions.texts)))
    for entries, others, partner in ((prompts, conditions, "condition"), (conditions, prompts, "prompt")):
        alone = [str(place + 1) for place in places if entries.has(place) and not others.has(place)]
        if alone:
            raise UserError(
                f"{prompts.source} has {prompts.count} prompts, {conditions.source} has {conditions.count} "
                f"lines: prompt i goes with line i; line {', '.join(alone[:10])}"
                f"{', ...' if len(alone) > 10 else ''} of {entries.source} has no {partner}"
            )
    return [
        (prompts.texts[place], tuple(path.strip() for path in conditions.texts[place].split(",")))
        for place in places
        if prompts.has(place)
    ]


def _checked(entries: Entries) -> Entries:
    for place, text in enumerate(entries.texts, start=1):
        check_characters(text, f"{entries.source}: prompt {place}")
    return entries


def _has_suffix_of_text(text: str) -> bool:
    return Path(text).suffix.lower() in (*LINES, *TABLES, *JSON)


def _names_file(text: str) -> bool:
    """Whether a prompt is meant as the name of a file: by its suffix, or because it looks like a path."""
    if _has_suffix_of_text(text):
        return True
    is_word = not any(letter.isspace() for letter in text)
    is_other = Path(text).suffix.lower() in OTHERS
    return (is_other and (is_word or os.path.isfile(text))) or (is_word and os.sep in text and text.isascii())


def _condition_entries(source: str) -> Entries:
    suffix = Path(source).suffix.lower()
    is_list = os.path.isfile(source) if suffix not in LINES else True
    if suffix in IMAGE_SUFFIXES + VIDEO_SUFFIXES or not (is_list or ("," not in source and not suffix)):
        return Entries(f"--conditional_pixel_values_path {source}", [source], False)
    return _file_entries(source, "conditions", _lines(Path(source), "conditions"))


def _file_entries(source: str, what: str, texts: list[str]) -> Entries:
    texts = [text.strip() for text in texts]
    while texts and not texts[-1]:
        texts.pop()
    if not texts:
        raise UserError(f"{source}: holds no {what}")
    return Entries(source, texts, True)


def _prompts_of(path: Path) -> list[str]:
    suffix = path.suffix.lower()
    _check_is_file(path, "prompts")
    if suffix in TABLES:
        with open_csv(path) as rows:
            return _column(path, rows)
    if suffix in JSON and read_text(path).lstrip()[:1] in ("[", "{", '"'):
        return [_prompt_in(item, f"{path}: entry {place}") for place, item in enumerate(read_items(path))]
    if suffix in OTHERS:
        raise UserError(f"{path}: prompts are read from files that end with {', '.join((*LINES, *TABLES, *JSON))}")
    return _lines(path, "prompts")


def _column(path: Path, rows) -> list[str]:
    names = {name.strip().lower(): name for name in rows.fieldnames or () if name}
    column = next((names[name] for name in PROMPT_COLUMNS if name in names), None)
    if column is None:
        raise UserError(
            f"{path}: has columns {', '.join(rows.fieldnames or ())[:300]}, none of {', '.join(PROMPT_COLUMNS)}"
        )
    return [row[column] or "" for row in rows]


def _prompt_in(item: Any, place: str) -> str:
    """The prompt of an entry of a json file."""
    if isinstance(item, dict):
        item = next((item[name] for name in PROMPT_COLUMNS if name in item), None)
    if not isinstance(item, str):
        raise UserError(f"{place}: should be a text, or an object with a text as {' or '.join(PROMPT_COLUMNS)}")
    return item


def _lines(path: Path, what: str) -> list[str]:
    _check_is_file(path, what)
    with open_text(path) as file:
        return list(file)


def _check_is_file(path: Path, what: str) -> None:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file of {what}")
