"""The selected samples on disk: annotation files are read once, and memory stays flat however many samples there are.

A folder in the cache, named after the options and annotation files it was made from, holds

    records.jsonl     one sample a line, what reading it takes
    offsets.npy       (N + 1,) int64, where each line begins
    shapes.npy        (N,) int32, the sample's place in `shapes` of summary.json
    summary.json      shapes, sources, how many samples each rule left out, and the first of the faulty entries

The arrays are mapped into memory, so that all processes of a machine share one copy of them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import numpy as np

from opensora.datasets.t2v.annotations import Source, read_data_file
from opensora.datasets.t2v.index_builder import write_index
from opensora.datasets.t2v.options import T2VDataOptions
from opensora.datasets.t2v.probing import signature
from opensora.datasets.t2v.selection import Shape
from opensora.errors import UserError

FORMAT = 2  # raised when the files' meaning changes, so that older ones are made anew

# The options that decide what is selected. The others may change without a new index.
SELECTING = (
    "num_frames",
    "max_height",
    "max_width",
    "force_resolution",
    "max_hxw",
    "min_hxw",
    "hw_stride",
    "train_fps",
    "speed_factor",
    "drop_short_ratio",
    "sp_size",
    "ae_stride_t",
)


class SampleIndex:
    """The selected samples of all sources, in the order of the files. Opened by `open_index`; pickles as its path.

    Attributes:
        shapes: the different shapes, as they were first seen.
        shape_of: (N,) each sample's place in `shapes`.
        shape_counts: (len(shapes),) how many samples have each shape.
        sources: the lines of the data file.
        left_out: reason -> number of samples.
        faults: what is wrong with the first faulty entries and unreadable files, a line each.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        self.shapes = [Shape(*shape) for shape in summary["shapes"]]
        self.sources = [Source(root, embeddings, Path(file)) for root, embeddings, file in summary["sources"]]
        self.left_out: dict[str, int] = summary["left_out"]
        self.faults: list[str] = summary["faults"]
        self._unread: list = summary["unread"]
        self.shape_of = np.load(folder / "shapes.npy", mmap_mode="r")
        self.shape_counts = np.bincount(self.shape_of, minlength=len(self.shapes))
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        self._records = open(folder / "records.jsonl", "rb")
        if not len(self._offsets) == len(self) + 1 or self._offsets[-1] != os.stat(self._records.fileno()).st_size:
            raise UserError(f"{folder}: damaged")

    def __reduce__(self):
        return SampleIndex, (self.folder,)

    def __len__(self) -> int:
        return len(self.shape_of)

    def record(self, number: int) -> dict:
        """What the annotation says of a sample; `source` is the number of its source, `start` its first frame."""
        begin, end = int(self._offsets[number]), int(self._offsets[number + 1])
        return json.loads(os.pread(self._records.fileno(), end - begin, begin))

    @property
    def fingerprint(self) -> int:
        """Below 2^24, so exact in float32; indices of different samples very likely have different ones."""
        return zlib.crc32(self.shape_of.tobytes(), zlib.crc32(self._offsets.tobytes())) & 0xFFFFFF

    def is_current(self) -> bool:
        """Whether the files that could not be read when the index was made are as they were then."""
        return all(signature(path) == (about and tuple(about)) for path, about in self._unread)

    def table(self, fewest: int) -> str:
        """To be printed: how many samples each rule left out, how many of each shape there are, and `faults`.

        Of shapes with fewer than `fewest` samples none is used.
        """
        counts = self.shape_counts
        left_out = self._left_out(fewest)
        rows = [("samples annotated", len(self) + sum(self.left_out.values()))]
        rows += [(f"left out: {reason}", count) for reason, count in left_out]
        rows += [("samples used", rows[0][1] - sum(count for _, count in left_out))]
        rows += [
            (f"  {shape}", int(counts[place]))
            for place, shape in sorted(enumerate(self.shapes), key=lambda entry: -counts[entry[0]])
            if counts[place] >= fewest
        ]
        return "\n".join([*(f"{name:<48}{count:>12,}" for name, count in rows), *self.faults])

    def why_none(self, fewest: int) -> str:
        """Why no sample is left, as part of a sentence."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self._left_out(fewest))
        return f"{reasons or 'the annotation files are empty'}{''.join(f'; {fault}' for fault in self.faults)}"

    def _left_out(self, fewest: int) -> list[tuple[str, int]]:
        rare = int(self.shape_counts[self.shape_counts < fewest].sum())
        rows = [*self.left_out.items(), (f"of a size with fewer than {fewest} samples", rare)]
        return [row for row in rows if row[1]]


def open_index(options: T2VDataOptions) -> SampleIndex:
    """The index of `options.data`, read from the cache or made now.

    One process of a machine makes it and the others wait.

    Faulty entries of the annotation files are left out and counted.

    Raises:
        UserError: an annotation file that cannot be read, or all entries are faulty.
        OSError: an annotation file is not there, or the cache cannot be written.
    """
    sources = read_data_file(options.data)
    cache = Path(options.cache_dir).resolve() / "dataset_index"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / _key(options, sources)
    with open(cache / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        index = _open_current(folder)
        if index is None:
            shutil.rmtree(folder, ignore_errors=True)
            _build(folder, sources, options)
            index = SampleIndex(folder)
    return index


def _open_current(folder: Path) -> Optional[SampleIndex]:
    """The index in this folder; None if there is none, or it is damaged or out of date."""
    try:
        index = SampleIndex(folder)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return index if index.is_current() else None


def _key(options: T2VDataOptions, sources: Sequence[Source]) -> str:
    """A name that changes with everything the index depends on."""
    files = [
        [*map(str, source), source.annotation.stat().st_size, source.annotation.stat().st_mtime_ns]
        for source in sources
    ]
    text = json.dumps([FORMAT, [getattr(options, name) for name in SELECTING], files])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _build(folder: Path, sources: Sequence[Source], options: T2VDataOptions) -> None:
    """Writes the index beside its place and renames it when it is whole."""
    unfinished = folder.with_suffix(f".{os.uname().nodename}.part")  # other machines may share the cache, not the lock
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        write_index(unfinished, sources, options, folder.parent / "media.sqlite")
        unfinished.rename(folder)
    except OSError:
        if not folder.exists():  # else another machine was faster
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
