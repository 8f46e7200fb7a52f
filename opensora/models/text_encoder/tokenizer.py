"""Tokenizers of the text encoders, read from a local folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Union

import numpy as np

from opensora.checkpoint.files import resolve_path
from opensora.errors import UserError


class Tokenizer:
    """Text to token ids, padded and cut to one length.

    Raises:
        FileNotFoundError: no such folder.
        UserError: the folder holds no tokenizer, or a damaged one.
    """

    def __init__(self, folder: Union[str, Path]):
        # transformers looks for its back ends when it is imported; only tokenizers are wanted.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        folder = resolve_path(folder)
        if not any((folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json", "spiece.model")):
            raise UserError(
                f"{folder} holds no tokenizer: tokenizer.json, or spiece.model and tokenizer_config.json, "
                f"should lie there beside the text encoder's weights"
            )
        try:
            self.tokenizer = _read_tokenizer(folder)
        except Exception as error:  # the libraries raise whatever they happen to hit in a damaged file
            raise UserError(
                f"{folder}: its tokenizer cannot be read ({' '.join(str(error).split())[:300]}); download "
                f"or copy its files again"
            ) from error

    @property
    def knows_chinese(self) -> bool:
        """Whether Chinese characters have tokens, as in mT5; to T5 they are unknown."""
        return self.tokenizer.unk_token_id not in self.tokenizer("的", add_special_tokens=False)["input_ids"]

    def __call__(self, texts: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask (1 = a token), both int32 (len(texts), max_length)."""
        encoded = self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=max_length,
            truncation=True,
            return_attention_mask=True,
            return_tensors="np",
        )
        return encoded["input_ids"].astype(np.int32), encoded["attention_mask"].astype(np.int32)

    def count(self, text: str) -> int:
        """Tokens of the whole text, the end token included."""
        return len(self.tokenizer(text, verbose=False)["input_ids"])


def _read_tokenizer(folder: Path):
    from transformers import AutoTokenizer, T5TokenizerFast

    if (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.json").is_file():
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    # A space before the text, as when mT5 and T5 v1.1 were trained; released tokenizer_config.json say the same.
    return T5TokenizerFast(vocab_file=str(folder / "spiece.model"), extra_ids=0, legacy=True, add_prefix_space=True)
