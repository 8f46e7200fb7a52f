"""An on-disk index of the selected samples: annotation files are read once, and memory does not grow with the dataset.

The index is a folder in the cache, named by a hash of the options and annotation files. It contains

    records.jsonl     one sample per line, with the data needed to read it
    offsets.npy       (N + 1,) int64, offsets of the lines
    shapes.npy        (N,) int32, index of the sample's shape in `shapes` of summary.json
    summary.json      shapes, sources, number of samples excluded by each rule, and the first faulty entries

The arrays are memory-mapped, so all processes of a machine share one copy.
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

FORMAT = 2  # version of the file format; indices of other versions are rebuilt

# The options that the selection depends on. Other options may change without rebuilding the index.
SELECTION_OPTIONS = (
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
    """The selected samples of all sources, in file order. Opened by `open_index`; pickled as its path.

    Attributes:
        shapes: the distinct shapes, by first appearance.
        shape_of: (N,) index into `shapes` for each sample.
        shape_counts: (len(shapes),) number of samples of each shape.
        sources: the lines of the data file.
        left_out: reason -> number of excluded samples.
        faults: messages about the first faulty entries and unreadable files, one line each.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        self.shapes = [Shape(*shape) for shape in summary["shapes"]]
        self.sources = [Source(root, embeddings, Path(file)) for root, embeddings, file in summary["sources"]]
        self.left_out: dict[str, int] = summary["left_out"]
        self.faults: list[str] = summary["faults"]
        self._unreadable: list = summary["unread"]
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
        """The annotation of a sample; `source` is an index into `sources`, `start` the first frame."""
        begin, end = int(self._offsets[number]), int(self._offsets[number + 1])
        return json.loads(os.pread(self._records.fileno(), end - begin, begin))

    @property
    def fingerprint(self) -> int:
        """A checksum of the selected samples, below 2^24 so that it is exact in float32."""
        return zlib.crc32(self.shape_of.tobytes(), zlib.crc32(self._offsets.tobytes())) & 0xFFFFFF

    def digest(self) -> str:
        """SHA-256 of the selected samples: their folders, annotations and shapes."""
        digest = hashlib.sha256(json.dumps([self.shapes, [source.root for source in self.sources]]).encode())
        digest.update(self.shape_of.tobytes())
        with open(self.folder / "records.jsonl", "rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
        return digest.hexdigest()

    def is_current(self) -> bool:
        """Whether the files that were unreadable when the index was built are unchanged."""
        return all(signature(path) == (before and tuple(before)) for path, before in self._unreadable)

    def table(self, min_samples: int) -> str:
        """A text table: samples excluded by each rule, samples of each shape, and `faults`.

        Shapes with fewer than `min_samples` samples are excluded.
        """
        counts = self.shape_counts
        left_out = self._left_out(min_samples)
        rows = [("samples annotated", len(self) + sum(self.left_out.values()))]
        rows += [(f"left out: {reason}", count) for reason, count in left_out]
        rows += [("samples used", rows[0][1] - sum(count for _, count in left_out))]
        rows += [
            (f"  {shape}", int(counts[number]))
            for number, shape in sorted(enumerate(self.shapes), key=lambda entry: -counts[entry[0]])
            if counts[number] >= min_samples
        ]
        return "\n".join([*(f"{name:<48}{count:>12,}" for name, count in rows), *self.faults])

    def explain_exclusions(self, min_samples: int) -> str:
        """Why all samples are excluded, as a clause of an error message."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self._left_out(min_samples))
        return f"{reasons or 'the annotation files are empty'}{''.join(f'; {fault}' for fault in self.faults)}"

    def _left_out(self, min_samples: int) -> list[tuple[str, int]]:
        rare = int(self.shape_counts[self.shape_counts < min_samples].sum())
        rows = [*self.left_out.items(), (f"of a size with fewer than {min_samples} samples", rare)]
        return [row for row in rows if row[1]]


def open_index(options: T2VDataOptions) -> SampleIndex:
    """Opens the index of `options.file` in the cache; builds it if it does not exist.

    One process per machine builds it while the others wait. Faulty entries of annotation files are excluded and
    counted.

    Raises:
        UserError: an unreadable annotation file, or all entries are faulty.
        OSError: an annotation file does not exist, or the cache is not writable.
    """
    sources = read_sources(options)
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


def read_sources(options: T2VDataOptions) -> list[Source]:
    """The annotation files that list the samples. Raises as `read_data_file`."""
    if options.data_path is None:
        return read_data_file(options.file)
    if not os.path.isfile(options.data_path):
        raise FileNotFoundError(f"--data_path {options.data_path}: no such file")
    return [Source("", None, Path(options.data_path))]


def _open_current(folder: Path) -> Optional[SampleIndex]:
    """The index in this folder; None if it does not exist, is damaged or is outdated."""
    try:
        index = SampleIndex(folder)
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None
    return index if index.is_current() else None


def _key(options: T2VDataOptions, sources: Sequence[Source]) -> str:
    """A hash of everything that the index depends on."""
    files = [
        [*map(str, source), source.annotation.stat().st_size, source.annotation.stat().st_mtime_ns]
        for source in sources
    ]
    names = (*SELECTION_OPTIONS, "form", "sample_rate")
    text = json.dumps([FORMAT, [getattr(options, name) for name in names], files])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _build(folder: Path, sources: Sequence[Source], options: T2VDataOptions) -> None:
    """Builds the index in a temporary folder and renames that when it is complete."""
    unfinished = folder.with_suffix(
        f".{os.uname().nodename}.part"
    )  # other machines may share the cache, but not the lock
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        write_index(unfinished, sources, options, folder.parent / "media.sqlite")
        unfinished.rename(folder)
    except OSError:
        if not folder.exists():  # otherwise another machine was faster
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
