"""Builds the index of the selected samples; for its files see `opensora.datasets.t2v.index`."""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from opensora.datasets.broken import printable
from opensora.datasets.t2v.annotations import Source, read_items
from opensora.datasets.t2v.entries import MAX_FPS, MIN_FPS, check_entry
from opensora.datasets.t2v.options import T2VDataOptions
from opensora.datasets.t2v.probing import MEDIA, Media, Prober, signature
from opensora.datasets.t2v.selection import DEFAULT_FPS, REASONS, Shape, max_frames, select_entry
from opensora.errors import UserError

CHUNK = 4096  # entries checked together, so that their files can be probed in parallel
MAX_LISTED = 10  # faulty entries and unreadable files listed in the report, of each kind
MAX_WATCHED = 100  # unreadable files; if one of them changes, the index is rebuilt
SHORT_VIDEO_SEED = 42  # for excluding short videos; constant, as in the published training code


class _Report:
    """Collects faulty entries and unreadable files."""

    def __init__(self):
        self.faulty = 0
        self.listed: dict[str, list[str]] = {"faulty entry": [], "cannot be read": []}
        self.unreadable: list = []

    def add_fault(self, place: str, error: Exception) -> None:
        self.faulty += 1
        self._list("faulty entry", f"{place}: {error}")

    def add_unreadable(self, place: str, path: str, reason: str) -> None:
        if len(self.unreadable) < MAX_WATCHED:
            self.unreadable.append([path, signature(path)])
        self._list("cannot be read", f"{place}: {reason}")

    def lines(self) -> list[str]:
        return [f"{kind}: {line}" for kind, lines in self.listed.items() for line in lines]

    def _list(self, kind: str, line: str) -> None:
        if len(self.listed[kind]) < MAX_LISTED:
            self.listed[kind].append(printable(" ".join(line.split())))


def write_index(folder: Path, sources: Sequence[Source], options: T2VDataOptions, media: Path) -> None:
    """Writes the files of the index into `folder`.

    Args:
        media: the database of probed files, see `Prober`.

    Raises:
        UserError: an unreadable annotation file, or all entries are faulty.
    """
    shapes: dict[Shape, int] = {}
    shape_of, offsets, left_out = array("i"), array("q", [0]), Counter(dict.fromkeys(REASONS, 0))
    report, rng = _Report(), np.random.default_rng(SHORT_VIDEO_SEED)
    with open(folder / "records.jsonl", "wb") as records, closing(Prober(media, MEDIA)) as prober:
        for number, entry in _entries(sources, prober, report, options):
            shape = select_entry(entry, options, rng)
            if isinstance(shape, str):
                left_out[shape] += 1
                continue
            record = json.dumps(_record(entry, number, options), ensure_ascii=False)
            offsets.append(offsets[-1] + records.write(record.encode("utf-8", "surrogatepass") + b"\n"))
            shape_of.append(shapes.setdefault(shape, len(shapes)))
    left_out["faulty entry"] = report.faulty
    if report.faulty and report.faulty == len(shape_of) + sum(left_out.values()):
        raise UserError(f"{options.file}: none of {report.faulty} entries can be used; {'; '.join(report.lines())}")
    np.save(folder / "shapes.npy", np.asarray(shape_of))
    np.save(folder / "offsets.npy", np.asarray(offsets))
    summary = {
        "shapes": list(shapes),
        "left_out": left_out,
        "faults": report.lines(),
        "unread": report.unreadable,
        "sources": [(source.root, source.embedding_root, str(source.annotation)) for source in sources],
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")


def _entries(
    sources: Sequence[Source], prober: Prober[Media], report: _Report, options: T2VDataOptions
) -> Iterator[tuple[int, dict]]:
    """The valid entries in order, each with the number of its source; missing values are read from the media files."""
    size = sum(source.annotation.stat().st_size for source in sources)
    with tqdm(total=size, desc="annotations", unit="B", unit_scale=True, delay=1) as progress:
        for number, source in enumerate(sources):
            items = enumerate(read_items(source.annotation, progress.update))
            for chunk in iter(lambda: list(islice(items, CHUNK)), []):
                for entry in _complete(_checked(chunk, source, report), source, prober, report, options.is_older):
                    yield number, entry


def _checked(items: Iterable[tuple], source: Source, report: _Report) -> list[tuple[int, dict]]:
    entries = []
    for place, item in items:
        try:
            entries.append((place, check_entry(item)))
        except (ValueError, RecursionError) as error:
            report.add_fault(f"{source.annotation}: entry {place}", error)
    return entries


def _complete(
    entries: Sequence[tuple[int, dict]], source: Source, prober: Prober[Media], report: _Report, is_older: bool
) -> Iterator[dict]:
    """Completes the entries with values from their media files."""
    paths = {
        place: os.path.abspath(os.path.join(source.root, entry["path"]))
        for place, entry in entries
        if (_lacks_length(entry) if is_older else _is_incomplete(entry))
    }
    found = prober.probe(list(paths.values())) if paths else {}
    for place, entry in entries:
        if place in paths:
            media = found[paths[place]]
            if isinstance(media, Media):
                entry = _completed(entry, media)
            else:
                report.add_unreadable(f"{source.annotation}: entry {place}", paths[place], media)
        yield entry


def _is_incomplete(entry: dict) -> bool:
    if entry["cap"] is None:
        return False  # excluded anyway
    return entry["resolution"] is None or ("num_frames" in entry and not (entry["num_frames"] and entry["fps"]))


def _lacks_length(entry: dict) -> bool:
    """Whether a sample of v1.0 or v1.1 has to be opened: its size and frame rate have no effect."""
    return entry["cap"] is not None and "num_frames" in entry and not entry["num_frames"]


def _completed(entry: dict, media: Media) -> dict:
    entry = {**entry, "resolution": entry["resolution"] or {"height": media.height, "width": media.width}}
    if "num_frames" in entry:
        remaining = max(0, media.frames - entry["start"])
        entry["num_frames"] = min(entry["num_frames"] or remaining, remaining)
        entry["fps"] = entry["fps"] or (media.fps if MIN_FPS <= media.fps <= MAX_FPS else None)
    return entry


def _record(entry: dict, source: int, options: T2VDataOptions) -> dict:
    """The values of an entry that reading the sample requires."""
    caption = entry["cap"]
    if options.is_older and not isinstance(caption, str):
        caption = caption[0]  # v1.0 used no other
    record = {"source": source, "path": entry["path"], "cap": caption}
    if entry["aes"] is not None:
        record["aes"] = entry["aes"]
    if entry["crop"]:
        record["crop"] = entry["crop"]
    if "num_frames" in entry:
        fps = entry["fps"] or float(DEFAULT_FPS)
        frames = entry["num_frames"]
        if entry["is_range"]:
            frames = options.num_frames if options.is_older else min(frames, max_frames(fps, options))
        record.update(start=entry["start"], num_frames=frames, fps=fps)
    return record
