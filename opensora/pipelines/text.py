"""Text embeddings of prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
from mindspore import Tensor

from opensora.models.text_encoder.mt5 import MT5EncoderModel
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.utils.logs import logger

LENGTH_STEP = 64
TEXTS_PER_PASS = 64  # at least (`texts_per_pass`); their states take up to 8 MB each
MAX_SHOWN = 60  # characters of a text in a note


@dataclass(frozen=True)
class TextEmbedding:
    """States (B, L, D) of the text encoder, float32, and the padding mask (B, L), int32, 1 for tokens; numpy."""

    states: np.ndarray
    mask: np.ndarray

    def trimmed(self) -> TextEmbedding:
        """Without the trailing padding common to all rows (`trimmed_length`).

        Padding gets no attention, so the result does not change.
        """
        length = trimmed_length(self.mask)
        return TextEmbedding(self.states[:, :length], self.mask[:, :length])

    def split(self, parts: int) -> list[TextEmbedding]:
        """The rows in equal consecutive parts."""
        return [TextEmbedding(*rows) for rows in zip(np.split(self.states, parts), np.split(self.mask, parts))]

    @classmethod
    def concatenate(cls, embeddings: Sequence[TextEmbedding]) -> TextEmbedding:
        """The rows of several embeddings, padded with zeros to the longest."""
        length = max(embedding.mask.shape[1] for embedding in embeddings)

        def padded(rows: np.ndarray) -> np.ndarray:
            return np.pad(rows, [(0, 0), (0, length - rows.shape[1]), (0, 0)][: rows.ndim])

        return cls(
            np.concatenate([padded(embedding.states) for embedding in embeddings]),
            np.concatenate([padded(embedding.mask) for embedding in embeddings]),
        )

    def attention_mask(self) -> Optional[Tensor]:
        """(B, 1, L) for the transformer; None if there is no padding."""
        return None if self.mask.all() else Tensor(self.mask[:, None])


def embed_text(
    encoder: MT5EncoderModel,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    max_length: int,
    batch_size: Optional[int] = None,
) -> TextEmbedding:
    """The encoder's last hidden states of texts padded or truncated to `max_length` tokens.

    Args:
        batch_size: rows that the encoder computes together; None: all. A streamed encoder reads its weights once for
            all of them.
    """
    ids, mask = tokenizer(texts, max_length)
    starts = range(0, len(texts), batch_size or len(texts))
    rows = [slice(start, start + starts.step) for start in starts]
    states = encoder.encode([(Tensor(ids[some]), Tensor(mask[some])) for some in rows])
    return TextEmbedding(np.concatenate([some.float().asnumpy() for some in states]), mask)


def embed_texts(
    encoder: MT5EncoderModel, tokenizer: Tokenizer, texts: Sequence[str], max_length: int, batch_size: int = 1
) -> Iterator[TextEmbedding]:
    """Yields the embedding of each batch of texts, without most of its padding (`TextEmbedding.trimmed`).

    The encoder computes only the tokens that are kept: padding gets no attention. One text at a time, its result does
    not depend on the others.
    """
    step = texts_per_pass(batch_size) if encoder.is_streamed else batch_size
    for start in range(0, len(texts), step):
        ids, mask = tokenizer(texts[start : start + step], max_length)
        batches = []
        for first in range(0, len(ids), batch_size):
            rows = slice(first, first + batch_size)
            length = trimmed_length(mask[rows])
            batches.append((ids[rows, :length], mask[rows, :length]))
        states = encoder.encode([(Tensor(some), Tensor(some_mask)) for some, some_mask in batches])
        for some, (_, some_mask) in zip(states, batches):
            yield TextEmbedding(some.float().asnumpy(), some_mask)


def embed_cut(
    encoder: MT5EncoderModel, tokenizer: Tokenizer, texts: Sequence[str], others: Sequence[str], max_length: int
) -> Iterator[TextEmbedding]:
    """Yields for each text the embeddings of `others`, then its own, all cut to its tokens (`Generation.cuts_texts`).

    The mask has no padding: the states at the padded positions of a shorter text are part of its embedding.
    """
    step = texts_per_pass(1) if encoder.is_streamed else 1
    for start in range(0, len(texts), step):
        batches = []
        for text in texts[start : start + step]:
            ids, mask = tokenizer([*others, text], max_length)
            length = int(mask[-1].sum())
            batches.append((Tensor(ids[:, :length]), Tensor(mask[:, :length])))
        for states in encoder.encode(batches):
            found = states.float().asnumpy()
            yield TextEmbedding(found, np.ones(found.shape[:2], np.int32))


def texts_per_pass(batch_size: int) -> int:
    """Texts, in whole batches, that a streamed text encoder embeds each time it reads its weights."""
    return -(-TEXTS_PER_PASS // batch_size) * batch_size


def trimmed_length(mask: np.ndarray) -> int:
    """The number of tokens (..., L) up to the last that is not padding, rounded up to a multiple of `LENGTH_STEP`.

    Rounding limits the number of distinct lengths, because graph mode compiles each of them.
    """
    longest = int(mask.sum(-1).max())
    return min(mask.shape[-1], -(-longest // LENGTH_STEP) * LENGTH_STEP)


def note_if_truncated(tokenizer: Tokenizer, text: str, max_length: int, remedy: str) -> None:
    """Prints a note to stderr if `text` has more than `max_length` tokens."""
    count = tokenizer.count(text)
    if count > max_length:
        text = " ".join(text.split())
        logger.warning(
            f"the text {text[:MAX_SHOWN]!r}... has {count} tokens and is truncated to {max_length}; {remedy}"
        )


def text_inputs(embedding: TextEmbedding) -> dict[str, np.ndarray]:
    """The inputs of Open-Sora's transformers for n embedded texts: y (n, 1, L, D) and mask (n, L)."""
    return {"y": embedding.states[:, None], "mask": embedding.mask}


class TextEncoder:
    """A text encoder with its tokenizer and a fixed sequence length.

    Args:
        max_length: number of tokens that texts are padded or truncated to.
    """

    def __init__(self, encoder: MT5EncoderModel, tokenizer: Tokenizer, max_length: int):
        self.encoder, self.tokenizer, self.max_length = encoder.set_train(False), tokenizer, max_length

    @property
    def width(self) -> int:
        """Channels of an embedding."""
        return self.encoder.config.d_model

    def __call__(self, texts: Sequence[str]) -> TextEmbedding:
        """Embeds texts without template."""
        return embed_text(self.encoder, self.tokenizer, texts, self.max_length)

    def inputs(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The inputs of Open-Sora's transformers for n texts: y (n, 1, L, D) and mask (n, L)."""
        return text_inputs(self(texts))

    def note_if_truncated(self, text: str, remedy: str) -> None:
        """Prints a note to stderr if `text` has too many tokens."""
        note_if_truncated(self.tokenizer, text, self.max_length, remedy)
