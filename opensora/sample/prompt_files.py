"""Reads --text_prompt and --conditional_pixel_values_path: texts, or files with one entry per line.

Entry i of one file is paired with entry i of the other, so blank entries are kept until the files are paired.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opensora.datasets.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from opensora.datasets.t2v.annotations import read_items
from opensora.errors import UserError
from opensora.sample.options import PROMPT_COLUMNS, SampleOptions
from opensora.utils.text_files import check_characters, open_csv, open_text, read_text

LINES, TABLES, JSON = (".txt", ".text", ".md", ".list"), (".csv",), (".json", ".jsonl")
# Unsupported text files; their names are not accepted as prompts.
UNSUPPORTED = (
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


@dataclass(frozen=True)
class Entries:
    """`texts` of `source`; texts of a file may be blank, except the last."""

    source: str
    texts: list[str]
    is_file: bool

    @property
    def count(self) -> int:
        return sum(map(self.has, range(len(self.texts))))

    def has(self, index: int) -> bool:
        """Whether there is an entry at this index; blank lines of a file are none."""
        return index < len(self.texts) and (bool(self.texts[index]) or not self.is_file)


def read_prompts(text_prompt: Sequence[str]) -> list[str]:
    """The prompts of --text_prompt, without the blank lines of a file.

    Raises:
        FileNotFoundError: no such file.
        UserError: a file without prompts, of unsupported format or encoding; several files; half a surrogate pair.
    """
    entries = prompt_entries(text_prompt)
    return [text for index, text in enumerate(entries.texts) if entries.has(index)]


def prompt_entries(text_prompt: Sequence[str]) -> Entries:
    """Like `read_prompts`, with blank lines."""
    files = [text for text in text_prompt if _names_file(text)]
    if files and len(text_prompt) > 1:
        raise UserError(
            f"--text_prompt takes prompts or one file; {files[0]!r} is a file name among {len(text_prompt)} values: "
            f"concatenate the files"
        )
    if files:
        return _checked(_file_entries(files[0], "prompts", _prompts_of(Path(files[0]))))
    return _checked(Entries("--text_prompt", list(text_prompt), False))


def read_prompt_file(path: str) -> list[str]:
    """The prompts of a file, including blank lines except at its end; raises like `read_prompts`."""
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
    """Raises UserError if a prompt is a file name."""
    if _has_text_suffix(prompt) and not any(letter.isspace() for letter in prompt):
        raise UserError(f"prompt {prompt!r} is a file name: use --prompt-path (prompt_path in a config)")


def pair(prompts: Entries, source: str) -> list[tuple[str, tuple[str, ...]]]:
    """Pairs each prompt with its conditioning files.

    Args:
        source: a text file with one line of conditioning files per prompt, or such a line.

    Raises:
        FileNotFoundError: no such file.
        UserError: an entry without a counterpart.
    """
    conditions = _condition_entries(source)
    indices = range(max(len(prompts.texts), len(conditions.texts)))
    for entries, others, counterpart in ((prompts, conditions, "condition"), (conditions, prompts, "prompt")):
        unpaired = [str(index + 1) for index in indices if entries.has(index) and not others.has(index)]
        if unpaired:
            raise UserError(
                f"{prompts.source} has {prompts.count} prompts, {conditions.source} has {conditions.count} "
                f"lines: prompt i is paired with line i; line {', '.join(unpaired[:10])}"
                f"{', ...' if len(unpaired) > 10 else ''} of {entries.source} has no {counterpart}"
            )
    return [
        (prompts.texts[index], tuple(path.strip() for path in conditions.texts[index].split(",")))
        for index in indices
        if prompts.has(index)
    ]


def _checked(entries: Entries) -> Entries:
    for number, text in enumerate(entries.texts, start=1):
        check_characters(text, f"{entries.source}: prompt {number}")
    return entries


def _has_text_suffix(text: str) -> bool:
    return Path(text).suffix.lower() in (*LINES, *TABLES, *JSON)


def _names_file(text: str) -> bool:
    """Whether a prompt is a file name, by its suffix or because it looks like a path."""
    if _has_text_suffix(text):
        return True
    is_word = not any(letter.isspace() for letter in text)
    is_unsupported = Path(text).suffix.lower() in UNSUPPORTED
    return (is_unsupported and (is_word or os.path.isfile(text))) or (is_word and os.sep in text and text.isascii())


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
        return [_prompt_in(item, f"{path}: entry {index}") for index, item in enumerate(read_items(path))]
    if suffix in UNSUPPORTED:
        raise UserError(f"{path}: unsupported format; prompt files end with {', '.join((*LINES, *TABLES, *JSON))}")
    return _lines(path, "prompts")


def _column(path: Path, rows: csv.DictReader) -> list[str]:
    names = {name.strip().lower(): name for name in rows.fieldnames or () if name}
    column = next((names[name] for name in PROMPT_COLUMNS if name in names), None)
    if column is None:
        raise UserError(
            f"{path} has columns {', '.join(rows.fieldnames or ())[:300]}, none of {', '.join(PROMPT_COLUMNS)}"
        )
    return [row[column] or "" for row in rows]


def _prompt_in(item: Any, where: str) -> str:
    """The prompt of an entry of a JSON file."""
    if isinstance(item, dict):
        item = next((item[name] for name in PROMPT_COLUMNS if name in item), None)
    if not isinstance(item, str):
        raise UserError(f"{where}: should be a string, or an object with a string as {' or '.join(PROMPT_COLUMNS)}")
    return item


def _lines(path: Path, what: str) -> list[str]:
    _check_is_file(path, what)
    with open_text(path) as file:
        return list(file)


def _check_is_file(path: Path, what: str) -> None:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file of {what}")
