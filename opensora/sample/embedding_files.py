"""The captions of an annotation file, embedded once: the files are those of `opensora.datasets.text_embeddings`."""
from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Sequence, Union

from tqdm import tqdm

from opensora.datasets.text_cleaning import clean_caption
from opensora.datasets.text_embeddings import EMPTY_TEXT, embedding_name, save_embedding
from opensora.pipelines.text import embed_text


class Caption(NamedTuple):
    """A text and the file its embedding belongs in."""

    text: str
    file: Path


def read_captions(data_file: Union[str, Path], output_path: Union[str, Path],
                  support_chinese: bool = True) -> list[Caption]:
    """All captions of an annotation file, cleaned as training cleans them, and the empty text first.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no json list, an entry without `path` and `cap`, or a path that leads out of `output_path`.
    """
    try:
        entries = json.loads(Path(data_file).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{data_file}: not a json file: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{data_file}: should hold a list of objects with `path` and `cap`")
    captions = [Caption("", Path(output_path) / EMPTY_TEXT)]
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or not entry.get("path") or not entry.get("cap"):
            raise ValueError(f"{data_file}: entry {i} has no `path` and `cap`: {entry!r:.80}")
        path = PurePosixPath(entry["path"])
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{data_file}: entry {i}: the path {entry['path']!r} leads out of {output_path}")
        texts = {None: entry["cap"]} if isinstance(entry["cap"], str) else dict(enumerate(entry["cap"]))
        captions += [Caption(clean_caption(text, support_chinese), Path(output_path) / embedding_name(entry["path"], k))
                     for k, text in texts.items()]
    return captions


def embed_captions(captions: Sequence[Caption], encoder, tokenizer, max_length: int, batch_size: int) -> None:
    """Writes the embeddings that are not there yet; a run that was stopped goes on where it was."""
    todo = [caption for caption in captions if not caption.file.exists()]
    with tqdm(total=len(captions), initial=len(captions) - len(todo), desc="captions", unit="caption") as progress:
        for start in range(0, len(todo), batch_size):
            batch = todo[start:start + batch_size]
            embedding = embed_text(encoder, tokenizer, [caption.text for caption in batch], max_length)
            for caption, states, mask in zip(batch, embedding.states, embedding.mask):
                save_embedding(caption.file, states, mask)
            progress.update(len(batch))
