"""Text embeddings on disk: one .npz a caption, named after the caption's video.

A file holds `states`, float32 (tokens, D), without padding, and `mask`, int32 (model_max_length,), 1 = a token.
The caption of `folder/clip.mp4` goes to `folder/clip.npz`; of a list of captions the k-th goes to `folder/clip_k.npz`.
"""
from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Optional, Sequence, Union
from zipfile import BadZipFile

import numpy as np
from tqdm import tqdm

from opensora.pipelines.text import TextEmbedding, embed_text
from opensora.utils.files import atomic_write


class Caption(NamedTuple):
    """A text and the file its embedding belongs in."""

    text: str
    file: Path


def embedding_name(path: str, number: Optional[int] = None) -> str:
    """The file for a caption of the sample `path`; `number` is its place where a sample has a list of captions."""
    stem = str(PurePosixPath(path).with_suffix(""))
    return f"{stem}.npz" if number is None else f"{stem}_{number}.npz"


def read_captions(data_file: Union[str, Path], output_path: Union[str, Path]) -> list[Caption]:
    """All captions of an annotation file.

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
    captions = []
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict) or not entry.get("path") or not entry.get("cap"):
            raise ValueError(f"{data_file}: entry {i} has no `path` and `cap`: {entry!r:.80}")
        path = PurePosixPath(entry["path"])
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{data_file}: entry {i}: the path {entry['path']!r} leads out of {output_path}")
        if isinstance(entry["cap"], str):
            captions.append(Caption(entry["cap"], Path(output_path) / embedding_name(entry["path"])))
        else:
            captions += [Caption(text, Path(output_path) / embedding_name(entry["path"], k))
                         for k, text in enumerate(entry["cap"])]
    return captions


def embed_captions(captions: Sequence[Caption], encoder, tokenizer, max_length: int, batch_size: int) -> None:
    """Writes the embeddings that are not there yet; a run that was stopped goes on where it was."""
    todo = [caption for caption in captions if not caption.file.exists()]
    with tqdm(total=len(captions), initial=len(captions) - len(todo), desc="captions", unit="caption") as progress:
        for start in range(0, len(todo), batch_size):
            batch = todo[start:start + batch_size]
            embedding = embed_text(encoder, tokenizer, [caption.text for caption in batch], max_length)
            for caption, states, mask in zip(batch, embedding.states, embedding.mask):
                with atomic_write(caption.file) as temporary, open(temporary, "wb") as file:
                    np.savez(file, states=states[:mask.sum()], mask=mask)
            progress.update(len(batch))


def load_embedding(file: Union[str, Path]) -> TextEmbedding:
    """The embedding in `file`, padded to its full length: states (1, L, D), mask (1, L).

    Raises:
        ValueError: a damaged file, or one of another kind.
    """
    try:
        with np.load(file, allow_pickle=False) as content:
            tokens, mask = content["states"], content["mask"]
    except (KeyError, ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"{file}: not a text embedding: {error}") from error
    states = np.zeros((1, len(mask), tokens.shape[1]), np.float32)
    states[0, :len(tokens)] = tokens
    return TextEmbedding(states, mask[None])
