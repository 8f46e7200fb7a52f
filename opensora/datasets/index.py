"""The selected samples on disk: annotation files are read once, and memory stays flat however many samples there are.

A folder in the cache, named after the options and annotation files it was made from, holds

    records.jsonl     one sample a line, what reading it takes
    offsets.npy       (N + 1,) int64, where each line begins
    shapes.npy        (N,) int32, the sample's place in `shapes` of summary.json
    summary.json      shapes, sources, and how many samples each rule left out

The arrays are mapped into memory, so that all processes of a machine share one copy of them.
"""
from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from array import array
from collections import Counter
from pathlib import Path
from typing import Sequence

import numpy as np
from tqdm import tqdm

from opensora.datasets.annotations import Source, read_data_file, read_items
from opensora.datasets.options import T2VDataOptions
from opensora.datasets.selection import DEFAULT_FPS, REASONS, Shape, check_is_video, first_frame, select

FORMAT = 1  # raised when the files' meaning changes, so that older ones are made anew
DRAW_SEED = 42  # of the short videos to leave out: the same in every run, as the published training has it

# The options that decide what is selected. The others may change without a new index.
SELECTING = ("num_frames", "max_height", "max_width", "force_resolution", "max_hxw", "min_hxw", "hw_stride",
             "train_fps", "speed_factor", "drop_short_ratio", "sp_size", "ae_stride_t")


class SampleIndex:
    """The selected samples of all sources, in the order of the files. Opened by `open_index`; pickles as its path.

    Attributes:
        shapes: the different shapes, as they were first seen.
        shape_of: (N,) each sample's place in `shapes`.
        shape_counts: (len(shapes),) how many samples have each shape.
        sources: the lines of the data file.
        left_out: reason -> number of samples.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        self.shapes = [Shape(*shape) for shape in summary["shapes"]]
        self.sources = [Source(root, embeddings, Path(file)) for root, embeddings, file in summary["sources"]]
        self.left_out: dict[str, int] = summary["left_out"]
        self.shape_of = np.load(folder / "shapes.npy", mmap_mode="r")
        self.shape_counts = np.bincount(self.shape_of, minlength=len(self.shapes))
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        self._records = open(folder / "records.jsonl", "rb")

    def __reduce__(self):
        return SampleIndex, (self.folder,)

    def __len__(self) -> int:
        return len(self.shape_of)

    def record(self, number: int) -> dict:
        """What the annotation says of a sample; `source` is the number of its source, `start` its first frame."""
        begin, end = int(self._offsets[number]), int(self._offsets[number + 1])
        return json.loads(os.pread(self._records.fileno(), end - begin, begin))

    def table(self, fewest: int) -> str:
        """To be printed: how many samples each rule left out, and how many of each shape there are.

        Of shapes with fewer than `fewest` samples none is used.
        """
        counts = self.shape_counts
        rare = int(counts[counts < fewest].sum())
        left_out = [*self.left_out.items(), (f"of a shape that fewer than {fewest} have", rare)]
        rows = [("samples annotated", len(self) + sum(self.left_out.values()))]
        rows += [(f"  {reason}", -count) for reason, count in left_out if count]
        rows += [("samples used", len(self) - rare)]
        rows += [(f"  {shape}", int(counts[place])) for place, shape in sorted(enumerate(self.shapes),
                 key=lambda entry: -counts[entry[0]]) if counts[place] >= fewest]
        return "\n".join(f"{name:<40}{count:>12,}" for name, count in rows)


def open_index(options: T2VDataOptions) -> SampleIndex:
    """The index of `options.data`, read from the cache or made now.

    One process of a machine makes it and the others wait.

    Raises:
        ValueError: faulty annotations.
        OSError: an annotation file is not there, or the cache cannot be written.
    """
    sources = read_data_file(options.data)
    cache = Path(options.cache_dir).resolve() / "dataset_index"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / _key(options, sources)
    with open(cache / "lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _build(folder, sources, options)
    return SampleIndex(folder)


def _key(options: T2VDataOptions, sources: Sequence[Source]) -> str:
    """A name that changes with everything the index depends on."""
    files = [[*map(str, source), source.annotation.stat().st_size, source.annotation.stat().st_mtime_ns]
             for source in sources]
    text = json.dumps([FORMAT, [getattr(options, name) for name in SELECTING], files])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _build(folder: Path, sources: Sequence[Source], options: T2VDataOptions) -> None:
    """Writes the index beside its place and renames it when it is whole."""
    unfinished = folder.with_suffix(f".{os.uname().nodename}.part")  # other machines may share the cache, not the lock
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        _write(unfinished, sources, options)
        unfinished.rename(folder)
    except OSError:
        if not folder.exists():  # else another machine was faster
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(folder: Path, sources: Sequence[Source], options: T2VDataOptions) -> None:
    shapes: dict[Shape, int] = {}
    shape_of, offsets, left_out = array("i"), array("q", [0]), Counter(dict.fromkeys(REASONS, 0))
    rng = np.random.default_rng(DRAW_SEED)
    size = sum(source.annotation.stat().st_size for source in sources)
    with open(folder / "records.jsonl", "wb") as records, \
            tqdm(total=size, desc="annotations", unit="B", unit_scale=True, delay=1) as progress:
        for number, source in enumerate(sources):
            for place, item in enumerate(read_items(source.annotation, progress.update)):
                try:
                    shape = select(item, options, rng)
                    if isinstance(shape, str):
                        left_out[shape] += 1
                        continue
                    line = json.dumps(_record(item, number), ensure_ascii=False).encode() + b"\n"
                except (TypeError, KeyError, IndexError, AttributeError, ValueError) as error:
                    raise ValueError(f"{source.annotation}: entry {place}: {error}") from error
                records.write(line)
                offsets.append(offsets[-1] + len(line))
                shape_of.append(shapes.setdefault(shape, len(shapes)))
    np.save(folder / "shapes.npy", np.asarray(shape_of))
    np.save(folder / "offsets.npy", np.asarray(offsets))
    summary = {"shapes": list(shapes), "left_out": left_out,
               "sources": [(source.root, source.embedding_root, str(source.annotation)) for source in sources]}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")


def _record(item: dict, source: int) -> dict:
    """What `clips` and the caption need of an annotation."""
    record = {"source": source, "path": item["path"], "cap": item["cap"]}
    if not isinstance(item["cap"], str) and not (item["cap"] and all(isinstance(text, str) for text in item["cap"])):
        raise ValueError(f"{item['path']}: `cap` should be a text or a list of texts")
    score = item.get("aesthetic") or item.get("aes")
    if score is not None:
        record["aes"] = float(score)
    if item.get("crop"):
        record["crop"] = [int(side) for side in item["crop"]]
    if check_is_video(item):
        record.update(start=int(first_frame(item)), num_frames=int(item["num_frames"]),
                      fps=float(item.get("fps") or DEFAULT_FPS))
    return record
