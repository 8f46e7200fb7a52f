"""Tensors that are read on demand: of files, in memory, with scales, and converted to another type."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Optional, Union

import numpy as np

from opensora.checkpoint.element_types import (
    BITS,
    NUMPY_TYPES,
    byte_count,
    decode,
    encode,
    storage_unit,
    stored_type,
    value_type,
)
from opensora.checkpoint.open_file import OpenFile, ScatteredFile
from opensora.checkpoint.quantized import BLOCK_TYPES, Q8_BLOCK, pack_q8_0, quantize_q8_0, unpack_q8_0
from opensora.errors import UserError

CHUNK_BYTES = 16 << 20  # memory used while a tensor is copied
CHUNK_VALUES = 1 << 20  # values converted at a time, with their temporaries some 16 MB
GRANULE = 256  # values; chunks are multiples, so that they hold whole blocks


class LazyTensor:
    """A tensor whose values are read on demand; the methods need a constant amount of memory except for their result.

    A subclass defines `values`, `elements` and `iter_bytes`.

    Attributes:
        shape: sizes of the axes.
        dtype: type of the elements, one of `NUMPY_TYPES` or of `quantized.BLOCK_TYPES`.
    """

    shape: tuple
    dtype: str

    @property
    def nbytes(self) -> int:
        """Bytes of `iter_bytes`."""
        return byte_count(self.shape, self.dtype)

    @property
    def stored_nbytes(self) -> int:
        """Bytes that the tensor takes where it is stored."""
        return self.nbytes

    def values(self, start: int, count: int) -> np.ndarray:
        """`count` consecutive values in C order, flat. For block types both numbers are multiples of the block."""
        raise NotImplementedError

    def elements(self) -> np.ndarray:
        """The stored numbers: bits as integers for BF16 and float8, bytes (..., bytes of a row) for block types."""
        raise NotImplementedError

    def iter_bytes(self) -> Iterator:
        """Yields the elements' bytes in C order, in chunks."""
        raise NotImplementedError

    def mapped(self) -> Optional[np.ndarray]:
        """`elements` as a view of a private memory map of the file; None where that is not possible."""
        return None

    def drop_pages(self) -> None:
        """Removes a map of the file that `mapped` returned from the process's memory."""

    def iter_values(self, count: int = CHUNK_VALUES) -> Iterator[np.ndarray]:
        """Yields the values in C order as flat arrays: float32 for BF16, float8 and block types.

        Args:
            count: maximum length of an array. All but the last have a multiple of 256 values, at least 256.
        """
        source = self._random_access()
        for start, number in self._ranges(count):
            yield source.values(start, number)

    def numpy(self) -> np.ndarray:
        """Reads the tensor; BF16, float8 and block types become float32."""
        values = np.empty(math.prod(self.shape), value_type(self.dtype))
        start = 0
        for chunk in self.iter_values():
            values[start : start + chunk.size] = chunk
            start += chunk.size
        return values.reshape(self.shape)

    def rows(self, indices: Union[Sequence[int], np.ndarray]) -> np.ndarray:
        """Reads only some rows of a (N, D) tensor: (len(indices), D)."""
        count, width = self.shape
        unique, places = np.unique(np.asarray(indices, np.int64), return_inverse=True)
        if unique.size and not 0 <= unique[0] <= unique[-1] < count:
            raise IndexError(f"rows {unique[0]} to {unique[-1]} of a tensor with {count} rows")
        source = self._random_access()
        found = np.empty((unique.size, width), value_type(self.dtype))
        for place, row in enumerate(unique.tolist()):
            found[place] = source.values(row * width, width)
        return found[places.reshape(-1)]

    def q8_0(self) -> tuple[np.ndarray, np.ndarray]:
        """A (N, k) tensor in Q8_0: int8 (N, k) and float16 scales (N, k / 32).

        The stored numbers of a tensor in Q8_0, else the nearest ones.
        """
        count, width = self.shape
        if width % Q8_BLOCK:
            raise UserError(f"rows of {width} values cannot be stored in Q8_0, which needs a multiple of {Q8_BLOCK}")
        q, scale = np.empty(count * width, np.int8), np.empty(count * width // Q8_BLOCK, np.float16)
        start = 0
        for numbers, scales in self.iter_q8_0():
            q[start : start + numbers.size] = numbers
            scale[start // Q8_BLOCK : start // Q8_BLOCK + scales.size] = scales
            start += numbers.size
        return q.reshape(self.shape), scale.reshape(count, -1)

    def iter_q8_0(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the numbers of `q8_0` in chunks, flat."""
        for values in self.iter_values():
            yield quantize_q8_0(values)

    def _ranges(self, count: int = CHUNK_VALUES) -> Iterator[tuple[int, int]]:
        """Yields start and length of consecutive ranges of values."""
        total, step = math.prod(self.shape), max(count // GRANULE, 1) * GRANULE
        return ((start, min(step, total - start)) for start in range(0, total, step))

    def _random_access(self) -> LazyTensor:
        """The tensor itself, or a copy in memory if every call of `values` would read all of it."""
        return self


@dataclass(frozen=True)
class FileTensor(LazyTensor):
    """A tensor in a file: `offset` of its first element in bytes, `strides` in elements.

    The blocks of a block type run along the last axis. Equal instances are the same bytes of the same open file.
    """

    file: Union[OpenFile, ScatteredFile]
    offset: int
    shape: tuple
    dtype: str
    strides: Optional[tuple] = None  # None: contiguous

    def iter_bytes(self) -> Iterator:
        if self.strides is not None:
            yield np.ascontiguousarray(self.elements()).reshape(-1).view(np.uint8)
            return
        unit = storage_unit(self.dtype).nbytes
        step = CHUNK_BYTES // unit * unit
        for start in range(0, self.nbytes, step):
            yield self.file.read(self.offset + start, min(step, self.nbytes - start))

    def numpy(self) -> np.ndarray:
        if value_type(self.dtype) != stored_type(self.dtype):
            return super().numpy()
        return np.ascontiguousarray(self.elements()).reshape(self.shape)

    def values(self, start: int, count: int) -> np.ndarray:
        if self.strides is not None:
            return self._random_access().values(start, count)
        elements, nbytes = storage_unit(self.dtype)
        data = self.file.read(self.offset + start // elements * nbytes, count // elements * nbytes)
        return decode(np.frombuffer(data, stored_type(self.dtype)), self.dtype)

    def elements(self) -> np.ndarray:
        kind = stored_type(self.dtype)
        if self.strides is None:
            return np.frombuffer(self.file.read(self.offset, self.nbytes), kind).reshape(
                stored_shape(self.shape, self.dtype)
            )
        if 0 in self.shape:
            return np.empty(self.shape, kind)
        span = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides))
        flat = np.frombuffer(self.file.read(self.offset, span * kind.itemsize), kind)
        return np.lib.stride_tricks.as_strided(flat, self.shape, [stride * kind.itemsize for stride in self.strides])

    def mapped(self) -> Optional[np.ndarray]:
        if self.strides is not None or self.dtype in BLOCK_TYPES or not self.nbytes:
            return None
        data = self.file.mapped(self.offset, self.nbytes)
        kind = stored_type(self.dtype)
        view = None if data is None else np.frombuffer(data, kind).reshape(self.shape)
        return view if view is not None and view.flags.aligned else None

    def drop_pages(self) -> None:
        self.file.drop(self.offset, self.nbytes)

    def iter_q8_0(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return map(unpack_q8_0, self.iter_bytes()) if self.dtype == "Q8_0" else super().iter_q8_0()

    def _random_access(self) -> LazyTensor:
        return self if self.strides is None else ArrayTensor(self.elements(), self.dtype)


class ArrayTensor(LazyTensor):
    """An array in memory; with `dtype`, it holds the stored numbers of that type."""

    def __init__(self, array: np.ndarray, dtype: Optional[str] = None):
        tags = {kind: tag for tag, kind in NUMPY_TYPES.items() if tag not in BITS}
        if array.dtype not in tags:
            raise UserError(f"cannot store an array of {array.dtype}; convert it to one of {', '.join(map(str, tags))}")
        self.array = array
        self.dtype = dtype or tags[array.dtype]
        self.shape = array.shape

    def iter_bytes(self) -> Iterator:
        yield np.ascontiguousarray(self.array).reshape(-1).view(np.uint8)

    def numpy(self) -> np.ndarray:
        return decode(self.array, self.dtype)

    def values(self, start: int, count: int) -> np.ndarray:
        flat = self.array.reshape(-1) if self.array.flags.c_contiguous else self.array.flat
        return decode(flat[start : start + count], self.dtype)

    def elements(self) -> np.ndarray:
        return self.array


class ScaledTensor(LazyTensor):
    """Numbers of any type times a scale; its elements are float32.

    Args:
        tensor: the numbers.
        scale: one number, one for each index of the first axis, (out,) or (out, 1), or for a tensor (out, k) one for
            each block of 32 along a row, (out, k / 32).

    Raises:
        UserError: a scale of another shape.
    """

    dtype = "F32"

    def __init__(self, tensor: LazyTensor, scale: LazyTensor):
        self.tensor, self.scale, self.shape = tensor, scale, tensor.shape
        total, count = math.prod(tensor.shape), math.prod(scale.shape)
        rows = tensor.shape[0] if tensor.shape else 1
        is_block = len(tensor.shape) == 2 and tuple(scale.shape) == (rows, tensor.shape[1] / Q8_BLOCK)
        if count != 1 and not is_block and tuple(scale.shape) not in ((rows,), (rows, 1)):
            raise UserError(f"a scale of shape {tuple(scale.shape)} does not fit a tensor of shape {tuple(self.shape)}")
        self._group = total // count if count else 1  # consecutive values with the same scale
        self.is_q8_0 = is_block and (tensor.dtype, scale.dtype) == ("I8", "F16")

    @property
    def stored_nbytes(self) -> int:
        return self.tensor.nbytes + self.scale.nbytes

    def values(self, start: int, count: int) -> np.ndarray:
        values = self.tensor.values(start, count).astype(np.float32)
        if count:
            first, last = start // self._group, (start + count - 1) // self._group
            scale = self.scale.values(first, last + 1 - first).astype(np.float32)
            repeats = np.full(scale.size, self._group)
            repeats[0] -= start - first * self._group
            repeats[-1] -= (last + 1) * self._group - start - count
            with np.errstate(all="ignore"):  # of scales that are not finite
                values *= np.repeat(scale, repeats) if scale.size > 1 else scale
        return values

    def elements(self) -> np.ndarray:
        return self.numpy()

    def iter_bytes(self) -> Iterator:
        return (values.view(np.uint8) for values in self.iter_values())

    def iter_q8_0(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if not self.is_q8_0:
            return super().iter_q8_0()
        tensor, scale = self.tensor._random_access(), self.scale._random_access()
        return (
            (tensor.values(start, count), scale.values(start // Q8_BLOCK, count // Q8_BLOCK))
            for start, count in self._ranges()
        )

    def _random_access(self) -> LazyTensor:
        tensor, scale = self.tensor._random_access(), self.scale._random_access()
        return self if (tensor, scale) == (self.tensor, self.scale) else ScaledTensor(tensor, scale)


class ConvertedTensor(LazyTensor):
    """A tensor converted to F32, F16, BF16 or Q8_0; to the nearest value, ties to even (Q8_0: away from zero).

    Args:
        source: the tensor.
        dtype: the type.
        name: of the tensor, for errors.

    Reading it raises UserError for numbers that float16 does not reach.
    """

    def __init__(self, source: LazyTensor, dtype: str, name: str = "the tensor"):
        self.source, self.dtype, self.name, self.shape = source, dtype, name, source.shape

    def values(self, start: int, count: int) -> np.ndarray:
        is_stored_q8_0 = isinstance(self.source, ScaledTensor) and self.source.is_q8_0 and self.dtype == "Q8_0"
        if self.source.dtype == self.dtype or is_stored_q8_0:
            return self.source.values(start, count)
        return decode(encode(self.source.values(start, count), self.dtype, self.name), self.dtype)

    def elements(self) -> np.ndarray:
        data = np.frombuffer(b"".join(self.iter_bytes()), stored_type(self.dtype))
        return data.reshape(stored_shape(self.shape, self.dtype))

    def iter_bytes(self) -> Iterator:
        if self.source.dtype == self.dtype:
            return self.source.iter_bytes()
        if self.dtype == "Q8_0":
            return (pack_q8_0(*chunk) for chunk in self.source.iter_q8_0())
        return (encode(values, self.dtype, self.name).view(np.uint8) for values in self.source.iter_values())

    def iter_q8_0(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return self.source.iter_q8_0() if self.dtype == "Q8_0" else super().iter_q8_0()

    def _random_access(self) -> LazyTensor:
        source = self.source._random_access()
        return self if source is self.source else ConvertedTensor(source, self.dtype, self.name)


def stored_shape(shape: Sequence[int], dtype: str) -> tuple[int, ...]:
    """The shape of the stored numbers; for block types the last axis counts bytes."""
    elements, nbytes = storage_unit(dtype)
    return (*shape[:-1], shape[-1] // elements * nbytes) if dtype in BLOCK_TYPES else tuple(shape)


def contiguous_strides(shape: Sequence[int]) -> tuple[int, ...]:
    """The strides, in elements, of a C-contiguous tensor."""
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size
    return tuple(reversed(strides))


def summarize(what: str, names: Sequence[str]) -> str:
    """The count, `what`, and the first names: `5 missing (a, b, c ...)`."""
    return f"{len(names)} {what}" + (f" ({', '.join(names[:3])}{' ...' if len(names) > 3 else ''})" if names else "")
