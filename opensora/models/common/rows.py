"""Rows of a batch that are computed once and used for several texts."""

from __future__ import annotations

from typing import Union

from mindspore import Tensor, ops


def repeat_rows(x: Tensor, rows: int) -> Tensor:
    """(b, ...) -> (rows, ...), of which row i is row i % b of x; x itself if it has as many rows."""
    if x.shape[0] == rows:
        return x
    return ops.tile(x, (rows // x.shape[0],) + (1,) * (x.ndim - 1))


def text_rows(text: Union[Tensor, tuple]) -> int:
    """The number of texts in the input of cross-attention: states (R, L, D), or the pair of their keys and values."""
    return text[0].shape[0] if isinstance(text, tuple) else text.shape[0]
