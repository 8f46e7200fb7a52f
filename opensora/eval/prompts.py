"""The prompts of generated videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from opensora.errors import UserError
from opensora.utils.json_text import read_json
from opensora.utils.text_files import read_text


def prompts_of(videos: Sequence[Path], file: Optional[str]) -> dict[str, str]:
    """Prompts by the names of videos, as far as they are known.

    Args:
        videos: sorted by name.
        file: of --prompts; None: the records that sample.py writes beside its videos.

    Raises:
        FileNotFoundError: no such file.
        UserError: another form, or a number of lines that is not that of the videos.
    """
    if file is None:
        found = {path.name: _recorded(path.with_suffix(".json")) for path in videos}
        return {name: prompt for name, prompt in found.items() if prompt is not None}
    if Path(file).suffix == ".json":
        content = read_json(file)
        if not isinstance(content, dict) or not all(isinstance(prompt, str) for prompt in content.values()):
            raise UserError(f"{file}: should be an object with the prompt of each video's name")
        return {path.name: content[name] for path in videos for name in (path.name, path.stem) if name in content}
    lines = [line.strip() for line in read_text(file).splitlines() if line.strip()]
    if len(lines) != len(videos):
        raise UserError(
            f"{file}: has {len(lines)} prompts for {len(videos)} videos: one line per video, or json by name"
        )
    return {path.name: line for path, line in zip(videos, lines)}


def _recorded(path: Path) -> Optional[str]:
    """The prompt in a record of sample.py; None if there is no such record."""
    if not path.is_file():
        return None
    record = read_json(path)
    prompt = record.get("prompt") if isinstance(record, dict) else None
    return prompt if isinstance(prompt, str) else None
