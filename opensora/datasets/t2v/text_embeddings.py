"""Text embeddings on disk: one .npz file per caption, named after the video or image.

The caption of `folder/clip.mp4` is stored in `folder/clip.npz`; the k-th of a list of captions in `folder/clip_k.npz`.
If several captions of an annotation file would share a name, for example those of `clip.mp4` and `clip.jpg` or of two
segments of a video, the first gets it and the others get longer names: `clip.jpg.npz`, `clip.mp4#k.npz`, and if these
collide too, `clip.mp4@DIGEST.npz` with a digest of the caption. `_empty.npz` is the embedding of the empty text, which
replaces dropped captions in training.

A file contains `states`, float32 (tokens, D), without padding; `mask`, int32 (model_max_length,), 1 for tokens; and
`origin`, json with the fields of `Origin`. An embedding is used only for the caption that it was made from. Files of
earlier versions have no `origin`; they are used unless several captions share one.
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
    """The inputs that an embedding was made from; digests are hexadecimal.

    Attributes:
        sample: `embedding_name` of the sample, without folders.
        caption: digest of the annotated caption.
        tokens: digest of the token ids and their padding, which depend on the cleaned caption, the tokenizer and the
            maximum length.
        encoder: digest of the text encoder's config and weights.
    """

    sample: str
    caption: str
    tokens: str
    encoder: str


def embedding_name(path: str, number: Optional[int] = None) -> str:
    """The long name of the sample `path`, unique per sample; `number` is the index in a list of captions.

    `load_embedding` also finds a file under the short name, if it belongs to this sample.
    """
    return f"{path}.npz" if number is None else f"{path}#{number}.npz"


def embedding_names(path: str, number: Optional[int], caption: str) -> Iterator[str]:
    """The possible file names of a caption's embedding, in order of preference; see the module docstring."""
    stem = str(PurePosixPath(path).with_suffix(""))
    yield f"{stem}.npz" if number is None else f"{stem}_{number}.npz"
    long_name = embedding_name(path, number)
    yield long_name
    yield f"{long_name[: -len('.npz')]}@{digest(caption.encode())[:16]}.npz"


def digest(*pieces: bytes) -> str:
    """SHA-256 of the concatenated bytes."""
    return hashlib.sha256(b"".join(pieces)).hexdigest()


def save_embedding(
    file: Union[str, Path], states: np.ndarray, mask: np.ndarray, origin: Optional[Origin] = None
) -> None:
    """Writes states (L, D) and mask (L,) of one text, without padding."""
    more = {} if origin is None else {"origin": json.dumps(origin._asdict())}
    with atomic_write(file) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, states=states[: mask.sum()], mask=mask, **more)


def load_embedding(file: Union[str, Path]) -> tuple[np.ndarray, np.ndarray]:
    """Reads an embedding: states (1, L, D), zero in the padding, and mask (1, L).

    Args:
        file: path of an embedding, or `folder / embedding_name(...)`.

    Raises:
        FileNotFoundError: no such file.
        UserError: a corrupt file, or not an embedding.
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
    """The origin of an embedding, None if an earlier version wrote it; raises as `load_embedding`."""
    with _open(file) as content:
        return Origin(**json.loads(str(content["origin"]))) if "origin" in content.files else None


def find_embedding(
    root: Union[str, Path], path: str, number: Optional[int], caption: str
) -> tuple[Path, Optional[Origin]]:
    """The file of a caption's embedding in the folder `root`, and its origin.

    Raises:
        FileNotFoundError: no such embedding.
        StaleEmbedding: it was made from another caption.
        UserError: a corrupt file.
    """
    other = None
    caption_digest = digest(caption.encode())
    for name in embedding_names(path, number, caption):
        file = Path(root) / name
        if not file.is_file():
            continue
        origin = read_origin(file)
        if origin is None or origin.caption == caption_digest:
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
    """An embedding was made from another caption."""


@contextmanager
def _open(file: Union[str, Path]) -> Iterator[np.lib.npyio.NpzFile]:
    """Opens an .npz file; errors while reading it are raised as UserError with the name of the file."""
    try:
        with np.load(file, allow_pickle=False) as content:
            yield content
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file}: no such embedding; sample_text_embed.py makes it") from error
    except (KeyError, ValueError, TypeError, AttributeError, EOFError, BadZipFile, zlib.error) as error:
        raise UserError(f"{file}: not a text embedding: {error}") from error


def _short_name_of(file: Path) -> Path:
    """`file` if it exists; otherwise the file with the short name, if it belongs to the same sample."""
    match = _LONG_NAME.fullmatch(file.name)
    if match is None or file.is_file():
        return file
    number = None if match["number"] is None else int(match["number"])
    short = file.with_name(next(embedding_names(match["path"], number, "")))
    origin = read_origin(short) if short.is_file() else None
    return short if origin is not None and origin.sample == file.name else file
