"""Checks cached text embeddings against the samples of the dataset, before training starts."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Optional

from tqdm import tqdm

from opensora.datasets.t2v.index import SampleIndex
from opensora.datasets.t2v.text_embeddings import (
    EMPTY_TEXT,
    StaleEmbedding,
    find_embedding,
    load_embedding,
    read_origin,
)
from opensora.errors import UserError

MAX_LISTED = 10  # files listed in an error or a note
CHUNK = 4096  # captions checked together
THREADS = 16  # files may be on a slow network file system


class _Lookup(NamedTuple):
    root: Path
    path: str
    number: Optional[int]
    caption: str


def check_embeddings(index: SampleIndex, max_length: int) -> list[str]:
    """Checks the embedding of every caption in the index; returns notes to print.

    Raises:
        FileNotFoundError: the embedding of the empty text is missing.
        UserError: embeddings of other captions, of different text encoders or of another length, or ambiguous
            embeddings of earlier versions that several captions share.
    """
    encoders = {}
    for root in sorted({source.embeddings for source in index.sources}):
        empty = root / EMPTY_TEXT
        _, mask = load_embedding(empty)
        if mask.shape[1] != max_length:
            raise UserError(f"{empty}: made with --model_max_length {mask.shape[1]}, but training uses {max_length}")
        origin = read_origin(empty)
        encoders[root] = origin.encoder if origin else None
    if len(set(encoders.values()) - {None}) > 1:
        raise UserError(
            f"embeddings in {', '.join(map(str, encoders))} were made by different text encoders; "
            f"run sample_text_embed.py again"
        )
    wrong: list[str] = []
    unreadable: list[str] = []
    without_origin: dict[Path, _Lookup] = {}
    for lookup, found, origin in tqdm(_find_all(index), desc="embeddings", unit="caption", delay=2):
        if isinstance(found, StaleEmbedding):
            wrong.append(str(found))
        elif isinstance(found, Exception):
            unreadable.append(str(found))
        elif origin is None:
            owner = without_origin.setdefault(found, lookup)
            if owner.caption != lookup.caption:
                wrong.append(
                    f"{found}: captions of {owner.path} and {lookup.path} share this file, and it does not "
                    f"record which one it was made from; run sample_text_embed.py again"
                )
        elif origin.encoder != encoders[lookup.root]:
            wrong.append(f"{found}: made by another text encoder than {EMPTY_TEXT}; run sample_text_embed.py again")
    if wrong:
        raise UserError(f"{len(wrong)} text embeddings cannot be used: {_first(wrong)}")
    notes = []
    if unreadable:
        notes.append(
            f"{len(unreadable)} text embeddings are missing or damaged, their samples will be replaced by others: "
            f"{_first(unreadable)}"
        )
    if without_origin:
        notes.append(
            f"{len(without_origin)} text embeddings were made by an earlier version that did not record their "
            f"captions; run sample_text_embed.py again to be sure that they match"
        )
    return notes


def _find_all(index: SampleIndex) -> Iterator[tuple]:
    """For every caption: the lookup, the file found or an exception, and the file's origin."""
    lookups = _lookups(index)
    with ThreadPoolExecutor(THREADS) as pool:
        for chunk in iter(lambda: list(islice(lookups, CHUNK)), []):
            yield from pool.map(_find, chunk)


def _lookups(index: SampleIndex) -> Iterator[_Lookup]:
    for sample in range(len(index)):
        record = index.record(sample)
        captions = [(None, record["cap"])] if isinstance(record["cap"], str) else enumerate(record["cap"])
        for number, caption in captions:
            yield _Lookup(index.sources[record["source"]].embeddings, record["path"], number, caption)


def _find(lookup: _Lookup) -> tuple:
    try:
        return (lookup, *find_embedding(*lookup))
    except (ValueError, OSError) as error:
        return lookup, error, None


def _first(lines: list[str]) -> str:
    return "; ".join(lines[:MAX_LISTED]) + ("; ..." if len(lines) > MAX_LISTED else "")
