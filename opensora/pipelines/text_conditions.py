"""The conditions of Open-Sora's transformers besides T5's states: pooled states of CLIP, and classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional, Protocol

import numpy as np
from mindspore import Tensor

from opensora.errors import UserError
from opensora.models.text_encoder.clip import CLIPTextModel
from opensora.models.text_encoder.tokenizer import Tokenizer
from opensora.pipelines.text import note_if_truncated


class Conditioner(Protocol):
    """Makes the inputs of a transformer from prompts, as `opensora.pipelines.text.TextEncoder` does.

    Attributes:
        max_length: tokens of a text.
        width: channels of an embedding; None: there is none.
    """

    max_length: int

    @property
    def width(self) -> Optional[int]: ...

    def inputs(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The inputs for n prompts: y, whose first axis is n, and for some transformers the mask of padding."""

    def note_if_truncated(self, text: str, remedy: str) -> None:
        """Prints a note to stderr if `text` has too many tokens."""


class PooledTextEncoder:
    """CLIP's text encoder with its tokenizer, for transformers that use the pooled state of a text alone.

    Args:
        max_length: number of tokens that texts are padded or truncated to.

    Raises:
        UserError: the encoder has positions for fewer tokens.
    """

    def __init__(self, encoder: CLIPTextModel, tokenizer: Tokenizer, max_length: int):
        longest = encoder.config.max_position_embeddings
        if not 1 <= max_length <= longest:
            raise UserError(f"model_max_length {max_length}: CLIP has positions for 1 to {longest} tokens")
        self.encoder, self.tokenizer, self.max_length = encoder.set_train(False), tokenizer, max_length

    @property
    def width(self) -> int:
        return self.encoder.config.hidden_size

    def inputs(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """y (n, 1, 1, C)."""
        ids, _ = self.tokenizer(texts, self.max_length)
        _, pooled = self.encoder(Tensor(ids))
        return {"y": pooled.float().asnumpy()[:, None, None]}

    def note_if_truncated(self, text: str, remedy: str) -> None:
        note_if_truncated(self.tokenizer, text, self.max_length, remedy)


class ClassLabels:
    """Prompts that are the numbers of classes, from 0 to `num_classes` - 1."""

    width = None

    def __init__(self, num_classes: int, max_length: int = 1):
        self.num_classes, self.max_length = num_classes, max_length

    def inputs(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """y (n,), integers.

        Raises:
            UserError: a text is not the number of a class.
        """
        return {"y": class_numbers(texts, self.num_classes)}

    def note_if_truncated(self, text: str, remedy: str) -> None:
        """Classes are never truncated."""


def class_numbers(texts: Sequence[str], num_classes: int) -> np.ndarray:
    """The numbers of classes that texts are, (n,) int32.

    Raises:
        UserError: a text is not the number of one of the classes.
    """
    numbers = []
    for text in texts:
        digits = text.strip()
        if not (digits.isascii() and digits.isdigit() and int(digits[:9]) < num_classes and len(digits) < 10):
            raise UserError(
                f"{text[:60]!r} is not a class: with text_encoder type 'classes' a text is a number from 0 to "
                f"{num_classes - 1}, the index of a class"
            )
        numbers.append(int(digits))
    return np.array(numbers, np.int32)
