"""One code for numpy arrays and MindSpore Tensors: float32 throughout, of the kind the caller gave."""

from __future__ import annotations

from typing import TYPE_CHECKING, Union

import numpy as np

from opensora.errors import UserError

if TYPE_CHECKING:
    from mindspore import Tensor

Array = Union[np.ndarray, "Tensor"]


def float32_like(array: Array, x: Array) -> Array:
    """`array` in float32, numpy or Tensor as x is."""
    return _same_kind(array, x).astype("float32")


def per_sample(values: Union[float, Array], x: Array) -> Array:
    """A number or (B,) values, float32, shaped to multiply x (B, ...)."""
    return float32_like(np.asarray(values) if np.isscalar(values) else values, x).reshape((-1,) + (1,) * (x.ndim - 1))


def rows(table: np.ndarray, t: Union[int, Array], x: Array) -> Array:
    """table[t] for timesteps t, a number or (B,), float32, shaped to multiply x (B, ...)."""
    t = _same_kind(np.asarray(t) if np.isscalar(t) else t, x)
    if isinstance(t, np.ndarray):
        if t.min() < 0 or t.max() >= len(table):
            raise UserError(f"timesteps are {t.min()} to {t.max()}: choose 0 to {len(table) - 1}")
        return per_sample(table[t.astype(np.int64)], x)
    return per_sample(_same_kind(table.astype(np.float32), x)[t.astype("int32")], x)


def _same_kind(array: Array, x: Array) -> Array:
    """`array` as numpy array or Tensor, as x is one."""
    if isinstance(x, np.ndarray):
        return array if isinstance(array, np.ndarray) else array.asnumpy()
    from mindspore import Tensor  # here, because numpy users need no MindSpore

    return array if isinstance(array, Tensor) else Tensor(array)
