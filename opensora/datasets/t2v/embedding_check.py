"""Checks cached text embeddings against the samples that will be trained with them, before training starts."""

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

MOST_NAMED = 10  # files in an error or a note
WINDOW = 4096  # captions looked at together
THREADS = 16  # files may lie on a slow network disk


class _Wanted(NamedTuple):
    root: str
    path: str
    number: Optional[int]
    caption: str


def check_embeddings(index: SampleIndex, max_length: int) -> list[str]:
    """Looks at the embedding of every caption in the index; returns notes to print.

    Raises:
        FileNotFoundError: the embedding of the empty text is missing.
        UserError: embeddings of other captions, of several text encoders, of another length, or, in caches of earlier
            versions, of which it is unclear to which caption they belong.
    """
    encoders = {}
    for root in sorted({source.embedding_root for source in index.sources}):
        empty = Path(root) / EMPTY_TEXT
        _, mask = load_embedding(empty)
        if mask.shape[1] != max_length:
            raise UserError(f"{empty}: made with --model_max_length {mask.shape[1]}, but training has {max_length}")
        origin = read_origin(empty)
        encoders[root] = origin and origin.encoder
    if len(set(encoders.values()) - {None}) > 1:
        raise UserError(
            f"embeddings in {', '.join(encoders)} were made by different text encoders; run sample_text_embed.py again"
        )
    wrong, unread, unmarked = [], [], {}
    for wanted, found, origin in tqdm(_look_at_all(index), desc="embeddings", unit="caption", delay=2):
        if isinstance(found, StaleEmbedding):
            wrong.append(str(found))
        elif isinstance(found, Exception):
            unread.append(str(found))
        elif origin is None:
            owner = unmarked.setdefault(found, wanted)
            if owner.caption != wanted.caption:
                wrong.append(
                    f"{found}: captions of {owner.path} and {wanted.path} share this file, and it does not "
                    f"say from which it was made; run sample_text_embed.py again"
                )
        elif origin.encoder != encoders[wanted.root]:
            wrong.append(f"{found}: made by another text encoder than {EMPTY_TEXT}; run sample_text_embed.py again")
    if wrong:
        raise UserError(f"{len(wrong)} text embeddings cannot be used: {_first(wrong)}")
    notes = []
    if unread:
        notes.append(
            f"{len(unread)} text embeddings are missing or damaged, their samples will be replaced by others: "
            f"{_first(unread)}"
        )
    if unmarked:
        notes.append(
            f"{len(unmarked)} text embeddings were made by an earlier version and do not say from which "
            f"captions; run sample_text_embed.py again to be sure that they fit"
        )
    return notes


def _look_at_all(index: SampleIndex) -> Iterator[tuple]:
    """Of every caption: what is wanted, the file or why there is none, and the file's origin."""
    captions = _captions(index)
    with ThreadPoolExecutor(THREADS) as pool:
        for window in iter(lambda: list(islice(captions, WINDOW)), []):
            yield from pool.map(_look_at, window)


def _captions(index: SampleIndex) -> Iterator[_Wanted]:
    for place in range(len(index)):
        record = index.record(place)
        captions = {None: record["cap"]} if isinstance(record["cap"], str) else dict(enumerate(record["cap"]))
        for number, caption in captions.items():
            yield _Wanted(index.sources[record["source"]].embedding_root, record["path"], number, caption)


def _look_at(wanted: _Wanted) -> tuple:
    try:
        return (wanted, *find_embedding(*wanted))
    except (ValueError, OSError) as error:
        return wanted, error, None


def _first(lines: list[str]) -> str:
    return "; ".join(lines[:MOST_NAMED]) + ("; ..." if len(lines) > MOST_NAMED else "")
