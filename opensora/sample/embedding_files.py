"""Precomputes caption embeddings of an annotation file, in the format of `opensora.datasets.t2v.text_embeddings`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Optional, Union

import numpy as np
from tqdm import tqdm

from opensora.datasets.broken import printable
from opensora.datasets.t2v.annotations import read_items
from opensora.datasets.t2v.entries import check_entry
from opensora.datasets.t2v.text_cleaning import clean_caption
from opensora.datasets.t2v.text_embeddings import (
    EMPTY_TEXT,
    Origin,
    digest,
    embedding_name,
    embedding_names,
    read_origin,
    save_embedding,
)
from opensora.errors import UserError
from opensora.models.model_digest import model_digest
from opensora.pipelines.text import embed_texts
from opensora.utils.logs import logger

MAX_LISTED = 10  # invalid entries


class Caption(NamedTuple):
    """A cleaned text, and the file for its embedding.

    `sample` and `source` identify the embedding's origin: the sample's long name, and a digest of the original caption.
    """

    text: str
    file: Path
    sample: str
    source: str


def read_captions(
    data_file: Union[str, Path], output_path: Union[str, Path], support_chinese: bool = True
) -> list[Caption]:
    """The empty text, then all captions of an annotation file, cleaned as in training.

    Entries that training skips are skipped and listed on stderr. A `cap` that is an object is the list of its values.

    Raises:
        FileNotFoundError: no such file.
        UserError: the file is not JSON, or no entry has a usable `path` and `cap`.
    """
    captions = {EMPTY_TEXT: Caption("", Path(output_path) / EMPTY_TEXT, EMPTY_TEXT, digest(b""))}
    errors: list[str] = []
    for index, item in enumerate(read_items(data_file)):
        try:
            texts = dict(_texts_of(item))
        except (ValueError, RecursionError) as error:
            errors.append(f"entry {index}: {printable(str(error))}")
            continue
        for number, text in texts.items():
            sample, source = embedding_name(PurePosixPath(item["path"]).name, number), digest(text.encode())
            for name in embedding_names(item["path"], number, text):
                new = Caption(clean_caption(text, support_chinese), Path(output_path) / name, sample, source)
                if captions.setdefault(name, new) == new:
                    break
    listed = "; ".join(errors[:MAX_LISTED]) + ("; ..." if len(errors) > MAX_LISTED else "")
    if len(captions) == 1:
        raise UserError(f"{data_file} has no entry with a caption{': ' if errors else ''}{listed}")
    if errors:
        logger.warning(f"{data_file}: {len(errors)} entries are skipped: {listed}")
    return list(captions.values())


def _texts_of(item: Any) -> Iterator[tuple[Optional[int], str]]:
    """The captions of an entry, with their index in a list of captions, else None; raises UserError if invalid."""
    if isinstance(item, dict) and isinstance(item.get("cap"), dict):
        item = {**item, "cap": list(item["cap"].values())}
    entry = check_entry(item)
    path = PurePosixPath(entry["path"])
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"the path {entry['path']!r} is outside the folder of embeddings")
    if entry["cap"] is None:
        raise UserError(f"{entry['path']} has no `cap`")
    return enumerate(entry["cap"]) if isinstance(entry["cap"], list) else iter([(None, entry["cap"])])


def embed_captions(captions: Sequence[Caption], encoder, tokenizer, max_length: int, batch_size: int) -> None:
    """Writes missing and outdated embeddings, so that an interrupted run can resume.

    Damaged files are replaced, and files of another caption, text encoder, tokenizer, precision or `max_length`.
    """
    encoder_id = model_digest(encoder)
    todo: list[tuple[Caption, Origin]] = []
    for caption in captions:
        ids, mask = tokenizer([caption.text], max_length)
        origin = Origin(caption.sample, caption.source, digest(ids.tobytes(), mask.tobytes()), encoder_id)
        if _origin_of(caption.file) != origin:
            todo.append((caption, origin))
    with tqdm(total=len(captions), initial=len(captions) - len(todo), desc="captions", unit="caption") as progress:
        texts = [caption.text for caption, _ in todo]
        batches = embed_texts(encoder, tokenizer, texts, max_length, batch_size)
        rows = (row for batch in batches for row in zip(batch.states, batch.mask))
        for (caption, origin), (states, mask) in zip(todo, rows):
            save_embedding(caption.file, states, np.pad(mask, (0, max_length - len(mask))), origin)
            progress.update()


def _origin_of(file: Path) -> Optional[Origin]:
    try:
        return read_origin(file)
    except (ValueError, FileNotFoundError):
        return None
