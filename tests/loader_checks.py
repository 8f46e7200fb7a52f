"""Datasets and a tokenizer small enough to look through, in a module that data workers can import."""
from __future__ import annotations

import os
import sys
import time

import numpy as np


class LettersTokenizer:
    """A token a letter: its code."""

    knows_chinese = True

    def __call__(self, texts: list, max_length: int) -> tuple:
        ids = np.zeros((len(texts), max_length), np.int32)
        for row, text in zip(ids, texts):
            codes = [ord(letter) for letter in text[:max_length]]
            row[:len(codes)] = codes
        return ids, (ids > 0).astype(np.int32)

    @staticmethod
    def text(ids: np.ndarray) -> str:
        return "".join(chr(code) for code in ids.ravel() if code)


class WhereItRuns:
    """Samples that say which process made them."""

    def item(self, index: int, rng: np.random.Generator) -> dict:
        return {"process": np.array(os.getpid()), "mindspore": np.array("mindspore" in sys.modules)}


class Slow(WhereItRuns):
    """The third sample takes a while."""

    def item(self, index: int, rng: np.random.Generator) -> dict:
        if index == 2:
            time.sleep(1)
        return super().item(index, rng)
