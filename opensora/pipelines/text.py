"""Prompts to text embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
from mindspore import Tensor

from opensora.models.text_encoder.mt5 import MT5EncoderModel
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.utils.logs import logger

LENGTH_STEP = 64
SHOWN = 60  # characters of a text in a note


@dataclass(frozen=True)
class TextEmbedding:
    """States (B, L, D) of the text encoder and their mask (B, L), 1 = a token; numpy, float32 and int32."""

    states: np.ndarray
    mask: np.ndarray

    def trimmed(self) -> TextEmbedding:
        """Without the tail that is padding in every row, in steps of `LENGTH_STEP`.

        Hidden tokens get no attention, so nothing changes but the work. The steps keep the number of different
        lengths, each of which graph mode compiles anew, small.
        """
        longest = int(self.mask.sum(1).max())
        length = min(self.mask.shape[1], -(-longest // LENGTH_STEP) * LENGTH_STEP)
        return TextEmbedding(self.states[:, :length], self.mask[:, :length])

    @staticmethod
    def stack(parts: Sequence[TextEmbedding]) -> TextEmbedding:
        """The rows of all parts, in order."""
        return TextEmbedding(
            np.concatenate([part.states for part in parts]), np.concatenate([part.mask for part in parts])
        )

    def attention_mask(self) -> Optional[Tensor]:
        """(B, 1, L) as the transformer takes it; None where every token is visible."""
        return None if self.mask.all() else Tensor(self.mask[:, None])


def embed_text(encoder: MT5EncoderModel, tokenizer: Tokenizer, texts: Sequence[str], max_length: int) -> TextEmbedding:
    """The encoder's last states of texts padded or cut to `max_length` tokens."""
    ids, mask = tokenizer(texts, max_length)
    states = encoder(Tensor(ids), Tensor(mask))
    return TextEmbedding(states.float().asnumpy(), mask)


def note_if_cut(tokenizer: Tokenizer, text: str, max_length: int, remedy: str) -> None:
    """Says on stderr if `text` has more than `max_length` tokens, so that its end has no effect."""
    count = tokenizer.count(text)
    if count > max_length:
        text = " ".join(text.split())
        logger.warning(
            f"the text {text[:SHOWN]!r}... has {count} tokens; what follows the first {max_length} has no "
            f"effect; {remedy}"
        )


class TextEncoder:
    """A text encoder with its tokenizer, for texts of one length.

    Args:
        encoder: an MT5EncoderModel.
        max_length: tokens that texts are padded or cut to.
    """

    def __init__(self, encoder: MT5EncoderModel, tokenizer: Tokenizer, max_length: int):
        self.encoder, self.tokenizer, self.max_length = encoder.set_train(False), tokenizer, max_length

    @property
    def width(self) -> int:
        """Channels of an embedding."""
        return self.encoder.config.d_model

    def __call__(self, texts: Sequence[str]) -> TextEmbedding:
        """Embeds texts as they are."""
        return embed_text(self.encoder, self.tokenizer, texts, self.max_length)
