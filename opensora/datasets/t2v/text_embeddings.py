"""Text embeddings on disk: one .npz per caption, named after the caption's video or image.

The caption of `folder/clip.mp4` goes to `folder/clip.npz`; the k-th of a list of captions goes to `folder/clip_k.npz`.
Where several captions of an annotation file would share such a name, as those of `clip.mp4` and `clip.jpg` or of two
parts of one film, the first keeps it and the others get longer ones: `clip.jpg.npz`, `clip.mp4#k.npz`, and where even
these are shared, `clip.mp4@DIGEST.npz` with a digest of the caption. `_empty.npz` is the empty text, which training
takes where it leaves a caption out.

A file holds `states`, float32 (tokens, D), without padding; `mask`, int32 (model_max_length,), 1 = a token; and
`origin`, json text with the fields of `Origin`. An embedding is used only for the caption that it was made from. Files
of earlier versions have no `origin`; they are used as long as no two captions share one.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple, Optional, Union
from zipfile import BadZipFile

import numpy as np

from opensora.errors import UserError
from opensora.utils.files import atomic_write

EMPTY_TEXT = "_empty.npz"
_LONG_NAME = re.compile(r"(?P<path>.+?)(?:#(?P<number>\d+))?\.npz", re.DOTALL)


class Origin(NamedTuple):
    """What an embedding was made from; digests are hexadecimal.

    Attributes:
        sample: `embedding_name` of its sample, without folders.
        caption: digest of the caption as it is annotated.
        tokens: digest of the token ids and their padding: they depend on the cleaned caption, the tokenizer and the
            maximum length.
        encoder: digest of the text encoder's configuration and weights.
    """

    sample: str
    caption: str
    tokens: str
    encoder: str


def embedding_name(path: str, number: Optional[int] = None) -> str:
    """The long name of the sample `path`; `number` is the caption's place where the sample has a list of captions.

    No two samples have the same. `load_embedding` also finds a file under the short name, if it is this sample's.
    """
    return f"{path}.npz" if number is None else f"{path}#{number}.npz"


def embedding_names(path: str, number: Optional[int], caption: str) -> Iterator[str]:
    """The names that a caption's embedding may have, in order of preference; see the module's docstring."""
    stem = str(PurePosixPath(path).with_suffix(""))
    yield f"{stem}.npz" if number is None else f"{stem}_{number}.npz"
    long_name = embedding_name(path, number)
    yield long_name
    yield f"{long_name[: -len('.npz')]}@{digest(caption.encode())[:16]}.npz"


def digest(*parts: bytes) -> str:
    """SHA-256 of all parts together."""
    return hashlib.sha256(b"".join(parts)).hexdigest()


def save_embedding(
    file: Union[str, Path], states: np.ndarray, mask: np.ndarray, origin: Optional[Origin] = None
) -> None:
    """Writes states (L, D) and mask (L,) of one text; padding is left out."""
    more = {} if origin is None else {"origin": json.dumps(origin._asdict())}
    with atomic_write(file) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, states=states[: mask.sum()], mask=mask, **more)


def load_embedding(file: Union[str, Path]) -> tuple[np.ndarray, np.ndarray]:
    """States (1, L, D), zeros where there is padding, and mask (1, L).

    `file` is the path of an embedding, or `folder / embedding_name(...)`.

    Raises:
        FileNotFoundError: no such file.
        UserError: a damaged file, or one of another kind.
    """
    file = _short_name_of(Path(file))
    with _open(file) as content:
        tokens, mask = content["states"], content["mask"]
    if tokens.ndim != 2 or mask.ndim != 1 or len(tokens) > len(mask) or not np.isfinite(tokens).all():
        raise UserError(
            f"{file}: not a text embedding: states {tokens.shape} and mask {mask.shape} should be finite "
            f"and of shape (tokens, D) and (model_max_length,)"
        )
    states = np.zeros((1, len(mask), tokens.shape[1]), np.float32)
    states[0, : len(tokens)] = tokens
    return states, mask[None]


def read_origin(file: Union[str, Path]) -> Optional[Origin]:
    """What the embedding was made from, None if an earlier version wrote it; raises as `load_embedding`."""
    with _open(file) as content:
        return Origin(**json.loads(str(content["origin"]))) if "origin" in content.files else None


def find_embedding(
    root: Union[str, Path], path: str, number: Optional[int], caption: str
) -> tuple[Path, Optional[Origin]]:
    """The embedding of a caption below the folder `root`, and its origin.

    Raises:
        FileNotFoundError: there is none.
        StaleEmbedding: it was made from another caption.
        UserError: a damaged file.
    """
    other = None
    wanted = digest(caption.encode())
    for name in embedding_names(path, number, caption):
        file = Path(root) / name
        if not file.is_file():
            continue
        origin = read_origin(file)
        if origin is None or origin.caption == wanted:
            return file, origin
        other = other or file
    if other is not None:
        raise StaleEmbedding(
            f"{other}: made from another caption than the one that {path} has now, "
            f"{caption!r:.60}; run sample_text_embed.py again"
        )
    raise FileNotFoundError(
        f"{Path(root) / next(embedding_names(path, number, caption))}: no such embedding; sample_text_embed.py makes it"
    )


class StaleEmbedding(UserError):
    """An embedding that belongs to another caption."""


@contextmanager
def _open(file: Union[str, Path]) -> Iterator[np.lib.npyio.NpzFile]:
    """The arrays of an .npz; whatever is wrong with the file becomes one error that names it."""
    try:
        with np.load(file, allow_pickle=False) as content:
            yield content
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file}: no such embedding; sample_text_embed.py makes it") from error
    except (KeyError, ValueError, TypeError, AttributeError, EOFError, BadZipFile, zlib.error) as error:
        raise UserError(f"{file}: not a text embedding: {error}") from error


def _short_name_of(file: Path) -> Path:
    """The path itself if the file exists, else that of the short name, if the file there is the same sample's."""
    match = _LONG_NAME.fullmatch(file.name)
    if match is None or file.is_file():
        return file
    number = match["number"] and int(match["number"])
    short = file.with_name(next(embedding_names(match["path"], number, "")))
    origin = read_origin(short) if short.is_file() else None
    return short if origin is not None and origin.sample == file.name else file
