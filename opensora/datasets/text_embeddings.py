"""Text embeddings on disk: one .npz a caption, named after the caption's video.

A file holds `states`, float32 (tokens, D), without padding, and `mask`, int32 (model_max_length,), 1 = a token.
The caption of `folder/clip.mp4` goes to `folder/clip.npz`; of a list of captions the k-th goes to `folder/clip_k.npz`.
`_empty.npz` is the empty text, which training takes where it leaves a caption out.
"""
from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Optional, Union
from zipfile import BadZipFile

import numpy as np

from opensora.utils.files import atomic_write

EMPTY_TEXT = "_empty.npz"


def embedding_name(path: str, number: Optional[int] = None) -> str:
    """The file for a caption of the sample `path`; `number` is its place where a sample has a list of captions."""
    stem = str(PurePosixPath(path).with_suffix(""))
    return f"{stem}.npz" if number is None else f"{stem}_{number}.npz"


def save_embedding(file: Union[str, Path], states: np.ndarray, mask: np.ndarray) -> None:
    """Writes states (L, D) and mask (L,) of one text; padding is left out."""
    with atomic_write(file) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, states=states[:mask.sum()], mask=mask)


def load_embedding(file: Union[str, Path]) -> tuple[np.ndarray, np.ndarray]:
    """States (1, L, D), zeros where there is padding, and mask (1, L).

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file, or one of another kind.
    """
    try:
        with np.load(file, allow_pickle=False) as content:
            tokens, mask = content["states"], content["mask"]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{file}: no such embedding; sample_text_embed.py makes it") from error
    except (KeyError, ValueError, EOFError, BadZipFile) as error:
        raise ValueError(f"{file}: not a text embedding: {error}") from error
    states = np.zeros((1, len(mask), tokens.shape[1]), np.float32)
    states[0, :len(tokens)] = tokens
    return states, mask[None]
