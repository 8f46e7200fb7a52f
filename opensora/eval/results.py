"""The results of each video, in a file that an interrupted run resumes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from opensora.errors import UserError
from opensora.utils.json_text import parse_json
from opensora.utils.logs import logger


class Results:
    """Records of videos by name; with a path, every record is appended to a .jsonl file at once.

    The first line of the file has the settings of the measurement. A file of other settings is replaced. A last line
    that was not written completely is removed.
    """

    def __init__(self, path: Optional[Path], settings: Mapping[str, Any]):
        self.path, self.settings = path, dict(settings)
        self.records: dict[str, dict[str, Any]] = {}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._resume(path)

    def source(self, name: str) -> Optional[list]:
        """The `source` of the record of a video (`opensora.eval.measure.Video`); None if there is no record."""
        return self.records.get(name, {}).get("source")

    def add(self, name: str, record: Mapping[str, Any]) -> None:
        """Adds the record of a video."""
        self.records[name] = dict(record)
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps({"video": name, **record}) + "\n")

    def _resume(self, path: Path) -> None:
        lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
        complete, rest = lines[:-1], lines[-1]
        try:
            first, *others = [parse_json(line) for line in complete] or [None]
            records = {record.pop("video"): record for record in others}
        except (UserError, TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path}: damaged ({error}); delete it to measure its videos again") from error
        if first != self.settings:
            if first is not None:
                logger.warning(f"{path} is of other settings: its {len(records)} videos are measured again")
            path.write_text(json.dumps(self.settings) + "\n", encoding="utf-8")
            return
        if rest:
            os.truncate(path, path.stat().st_size - len(rest))
        self.records = records
