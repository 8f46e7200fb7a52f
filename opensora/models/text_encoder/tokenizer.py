"""Tokenizers of the text encoders, loaded from a local folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Union

import numpy as np

from opensora.checkpoint.files import resolve_path
from opensora.errors import UserError


class Tokenizer:
    """Converts text to token ids, padded and truncated to a fixed length.

    Args:
        folder: holds tokenizer.json, or spiece.model and optionally tokenizer_config.json.

    Raises:
        FileNotFoundError: no such folder.
        UserError: the folder has no tokenizer, or a damaged one.
    """

    def __init__(self, folder: Union[str, Path]):
        # transformers warns if it finds no deep learning framework; tokenizers need none.
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        folder = resolve_path(folder)
        if not any((folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json", "spiece.model")):
            raise UserError(
                f"{folder} holds no tokenizer; put tokenizer.json, or spiece.model and tokenizer_config.json, "
                f"into the folder of the text encoder's weights"
            )
        try:
            self.tokenizer = _read_tokenizer(folder)
        except Exception as error:  # the libraries raise many kinds of errors for damaged files
            raise UserError(
                f"{folder}: cannot read the tokenizer ({' '.join(str(error).split())[:300]}); download or copy "
                f"its files again"
            ) from error

    @property
    def knows_chinese(self) -> bool:
        """Whether the vocabulary has Chinese characters: true for mT5, false for T5."""
        return self.tokenizer.unk_token_id not in self.tokenizer("的", add_special_tokens=False)["input_ids"]

    def __call__(self, texts: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and mask (1 = token, 0 = padding), both int32 (len(texts), max_length)."""
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
        """Number of tokens of the whole text, including the end token."""
        return len(self.tokenizer(text, verbose=False)["input_ids"])


def _read_tokenizer(folder: Path):
    from transformers import AutoTokenizer, T5TokenizerFast

    if (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.json").is_file():
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    # The prefix space matches the training of mT5 and T5 v1.1 and the released tokenizer_config.json.
    return T5TokenizerFast(vocab_file=str(folder / "spiece.model"), extra_ids=0, legacy=True, add_prefix_space=True)
