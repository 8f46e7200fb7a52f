"""The report of a preparation: what was found, what is left out and why, and which flags of training use more."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from opensora.datasets.broken import printable
from opensora.datasets.prepare.entries import label, write_data_file
from opensora.datasets.prepare.options import SelectionFlags
from opensora.datasets.prepare.selection import by_num_frames, count_used, explain, select_all, suggest
from opensora.datasets.t2v.annotations import Source
from opensora.datasets.t2v.entries import check_entry
from opensora.datasets.t2v.index import open_index
from opensora.datasets.t2v.selection import MAX_DURATION, Shape
from opensora.utils.files import atomic_write

MAX_SHOWN = 10  # lines of a section on stdout; the file has all


class Section(NamedTuple):
    """A heading with lines of text; a table is shown as it is, with all its lines."""

    title: str
    lines: Sequence[str]
    is_table: bool = False


def training_sections(entries: Sequence[dict], source: Source, flags: SelectionFlags) -> Iterator[Section]:
    """What training does with the samples under these flags.

    Args:
        entries: of the annotation file of `source`.
    """
    checked = [check_entry(entry) for entry in entries]
    selected = select_all(checked, flags)
    used = count_used(selected)
    yield Section(f"Samples with {flags.command_line()}", _index_table(source, flags).splitlines(), is_table=True)
    entries_of = Counter(entry["path"] for entry in entries)
    left_out = [
        f"{label(entry, entries_of)}: {explain(checked_entry, shape, flags)}"
        for entry, checked_entry, shape in zip(entries, checked, selected)
        if not isinstance(shape, Shape)
    ]
    yield Section("Left out by these flags", left_out)
    if used < len(entries):
        yield Section("Other flags", list(_advice(entries, checked, selected, flags)))


def _index_table(source: Source, flags: SelectionFlags) -> str:
    """The table that training prints at its start."""
    with tempfile.TemporaryDirectory() as cache:
        data = Path(cache) / "data.txt"
        write_data_file(data, source)
        return open_index(replace(flags, data=str(data), cache_dir=cache)).table(flags.min_samples)


def _advice(
    entries: Sequence[dict], checked: Sequence[dict], selected: Sequence, flags: SelectionFlags
) -> Iterator[str]:
    total, used = len(entries), count_used(selected)
    choices = by_num_frames(checked, flags)
    if len({choice.used for choice in choices}) > 1:
        yield from (f"--num_frames {choice.flags.num_frames} uses {choice.used} of {total}" for choice in choices)
    too_long = selected.count("too long")
    if too_long:
        seconds = int(10 * MAX_DURATION * flags.num_frames / flags.train_fps) / 10
        yield f"too long: {too_long}; --max_seconds {seconds:g} of this command divides them"
    suggested = suggest(checked, flags)
    if suggested.used > used:
        yield f"suggestion: {suggested.flags.command_line()} uses {suggested.used} of {total}"
    elif not used:
        yield f"no flags that were tried use any sample; training needs {flags.min_samples} samples of one size"


def write_report(path: Path, title: str, sections: Sequence[Section]) -> None:
    """Writes all lines as Markdown."""
    lines = [f"# {printable(title)}"]
    for section in filter(_has_lines, sections):
        lines += ["", f"## {section.title}", ""]
        if section.is_table:
            lines += ["```", *section.lines, "```"]
        else:
            lines += [f"- {printable(line)}" for line in section.lines]
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def summarize(report: Path, sections: Sequence[Section]) -> str:
    """The sections for a terminal, long ones shortened."""
    lines = []
    for section in filter(_has_lines, sections):
        lines.append(f"{section.title}:")
        shown = len(section.lines) if section.is_table else MAX_SHOWN
        lines += [f"  {printable(line)}" for line in section.lines[:shown]]
        if len(section.lines) > shown:
            lines.append(f"  ... and {len(section.lines) - shown} more, see {report}")
    return "\n".join(lines)


def _has_lines(section: Section) -> bool:
    return bool(section.lines)


def changes(before: Mapping[str, object], after: Mapping[str, object]) -> Iterator[Section]:
    """What differs from the former annotation file, given path -> caption of both."""
    if not before:
        return
    yield Section("Added since the last run", [path for path in after if path not in before])
    yield Section("Removed since the last run", [path for path in before if path not in after])
    changed = [path for path in after if path in before and before[path] != after[path]]
    yield Section("Captions changed since the last run", changed)
