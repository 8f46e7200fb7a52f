"""The prompts of generated videos."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

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
        found = {path.name: record_of(path).get("prompt") for path in videos}
        return {name: prompt for name, prompt in found.items() if isinstance(prompt, str)}
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


def record_of(video: Path) -> dict[str, Any]:
    """The record that sample.py wrote beside a video; empty if there is none.

    Raises:
        UserError: a damaged file.
    """
    path = video.with_suffix(".json")
    record = read_json(path) if path.is_file() else None
    return record if isinstance(record, dict) else {}
