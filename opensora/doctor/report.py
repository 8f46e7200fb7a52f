"""The table and the JSON of `opensora doctor`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import opensora
from opensora.doctor.checks import FAILED, OK, SKIPPED, STATUSES, WARNING, Row
from opensora.utils.files import atomic_write

FORMAT = 1  # of the JSON
PRIMITIVES = "primitives-"  # prefix of the checks that share a table, a column for each precision
MARKS = {OK: "ok", WARNING: "WARNING", FAILED: "FAILED", SKIPPED: "-"}


def exit_status(rows: Iterable[Row]) -> int:
    """1 if a row has failed, else 0."""
    return int(any(row.status == FAILED for row in rows))


def table(rows: Sequence[Row]) -> str:
    """The rows in sections, and their counts."""
    lines: list[str] = []
    for name, group in groupby(rows, key=lambda row: PRIMITIVES if row.check.startswith(PRIMITIVES) else row.check):
        found = list(group)
        lines += primitives_table(found) if name == PRIMITIVES else [f"{name}", *map(_line, found)]
        lines += [_remedy(row) for row in found if row.remedy and name != PRIMITIVES]
        lines.append("")
    counts = {status: sum(row.status == status for row in rows) for status in STATUSES}
    return "\n".join(
        [
            *lines,
            ", ".join(
                f"{count} {status}{'s' * (status == WARNING and count != 1)}" for status, count in counts.items()
            ),
        ]
    )


def _line(row: Row) -> str:
    return f"  {MARKS[row.status]:8} {row.name:22} {row.detail}"


def _remedy(row: Row) -> str:
    return f"  {row.name}: {row.remedy}"


def primitives_table(rows: Sequence[Row]) -> list[str]:
    """One line for each primitive with the errors of its output and of its gradient in each precision."""
    precisions = list(dict.fromkeys(row.check[len(PRIMITIVES) :] for row in rows))
    cells: dict[str, dict[tuple[str, str], Row]] = {}
    others = []
    for row in rows:
        name, _, direction = row.name.rpartition(" ")
        if direction in ("forward", "backward"):
            cells.setdefault(name, {})[row.check[len(PRIMITIVES) :], direction] = row
        else:
            others.append(row)
    width = max(map(len, cells), default=0)
    lines = ["primitives: relative error of output and gradient, and their time together"]
    lines.append(f"  {'':{width}}  {'  '.join(f'{precision:24}' for precision in precisions)}".rstrip())
    for name, found in cells.items():
        shown = "  ".join(f"{_cell(found, precision):24}" for precision in precisions)
        lines.append(f"  {name:{width}}  {shown}".rstrip())
    lines += map(_line, others)
    return lines + _failures(rows)


def _cell(found: dict[tuple[str, str], Row], precision: str) -> str:
    rows = [found.get((precision, direction)) for direction in ("forward", "backward")]
    errors = [_error(row) if row is not None else "" for row in rows]
    times = [row.numbers["milliseconds"] for row in rows if row is not None and "milliseconds" in row.numbers]
    return " ".join([*(f"{error:7}" for error in errors), f"{sum(times):.1f} ms" if times else ""])


def _error(row: Row) -> str:
    return f"{row.numbers['error']:.0e}" if row.status == OK else MARKS[row.status]


def _failures(rows: Sequence[Row]) -> list[str]:
    """One line for each different failure, with the rows that share it, and one for each different remedy."""
    reasons: dict[str, list[str]] = {}
    remedies: dict[str, None] = {}
    for row in rows:
        if row.status == FAILED:
            reasons.setdefault(row.detail, []).append(f"{row.name} {row.check[len(PRIMITIVES) :]}")
            if row.remedy:
                remedies[row.remedy] = None
    lines = [
        f"  FAILED   {', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {reason}"
        for reason, names in reasons.items()
    ]
    return lines + [f"  {remedy}" for remedy in remedies]


def report(rows: Sequence[Row], seconds: float) -> dict[str, Any]:
    """What the JSON holds: facts about software and hardware, and the listed environment variables; no user's name."""
    content = {
        "format": FORMAT,
        "opensora": opensora.__version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 1),
        "exit_status": exit_status(rows),
        "rows": [asdict(row) for row in rows],
    }
    return _without_home(content)


def _without_home(value: Any) -> Any:
    """The content with ~ in place of the home folder, which contains the user's name, and null for NaN and infinity."""
    if isinstance(value, str):
        return value.replace(str(Path.home()), "~")
    if isinstance(value, dict):
        return {str(key): _without_home(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_home(item) for item in value]
    if isinstance(value, float) and value - value != 0:
        return None
    return value


def write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
