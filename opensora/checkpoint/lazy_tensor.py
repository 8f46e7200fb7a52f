"""Tensors in a file that are read on demand."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple, Optional, Union

import numpy as np

from opensora.errors import UserError

CHUNK_BYTES = 16 << 20  # memory used while a tensor is copied
MOST_AXES = 32  # numpy's limit
LARGEST_TENSOR = 1 << 48  # elements

# Types have the names of safetensors. numpy has no bfloat16 and no float8: their bits are read as integers.
NUMPY_TYPES: dict[str, np.dtype] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F8_E4M3": np.dtype("u1"),
    "F8_E5M2": np.dtype("u1"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
BITS = ("BF16", "F8_E4M3", "F8_E5M2")  # types that are converted to float32, which is exact
FLOATS = ("F64", "F32", "F16", *BITS)


def truncated(path: Path, what: str = "the file") -> UserError:
    """The error for a file that ends too early."""
    return UserError(f"{path}: {what} is truncated; download or copy the file again")


def element_count(shape: Sequence[int]) -> int:
    """The number of elements of a shape read from a file. Raises UserError if no tensor can have that shape."""
    if len(shape) > MOST_AXES:
        raise UserError(f"a tensor of {len(shape)} axes; at most {MOST_AXES} can be read")
    count = 1
    for size in shape:
        if type(size) is not int or not 0 <= size <= LARGEST_TENSOR:
            raise UserError("an invalid shape: every size must be an integer from 0 to 2**48")
        count *= size or 1
        if count > LARGEST_TENSOR:
            raise UserError(f"a tensor of more than 2**48 elements, {tuple(shape)}")
    return 0 if 0 in shape else count


class OpenFile:
    """A file opened for random access; closed when the last reference is gone."""

    def __init__(self, path: Path):
        self.path = path
        self._file: io.FileIO = open(path, "rb", buffering=0)
        self.size = os.fstat(self._file.fileno()).st_size

    def read(self, offset: int, size: int) -> bytearray:
        """Reads `size` bytes at `offset`. Raises UserError if the file is too short."""
        if offset + size > self.size:
            raise truncated(self.path)
        data = bytearray(size)
        view = memoryview(data)
        self._file.seek(offset)
        done = 0
        while done < size:
            count = self._file.readinto(view[done:])
            if not count:  # the file was truncated after it was opened
                raise truncated(self.path)
            done += count
        return data

    def __del__(self):
        if hasattr(self, "_file"):
            self._file.close()


class ScatteredFile:
    """Several regions (offset, size) of a file, read as one concatenated region."""

    def __init__(self, file: OpenFile, places: Sequence[tuple[int, int]]):
        self.file, self.places = file, places

    def read(self, offset: int, size: int) -> bytearray:
        """Reads `size` bytes at `offset` of the concatenated regions."""
        if len(self.places) == 1:
            return self.file.read(self.places[0][0] + offset, size)
        data = bytearray()
        for start, length in self.places:
            count = min(size - len(data), length - offset)
            if count > 0:
                data += self.file.read(start + offset, count)
            offset = max(0, offset - length)
        return data


class FileTensor(NamedTuple):
    """A tensor in a file: `offset` of its first element in bytes, `strides` in elements.

    Equal instances are the same bytes of the same open file.
    """

    file: Union[OpenFile, ScatteredFile]
    offset: int
    shape: tuple
    dtype: str
    strides: Optional[tuple] = None  # None: contiguous

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * NUMPY_TYPES[self.dtype].itemsize

    def iter_bytes(self) -> Iterator:
        """Yields the elements' bytes in C order, in chunks."""
        if self.strides is not None:
            yield np.ascontiguousarray(self._elements()).reshape(-1).view(np.uint8)
            return
        for start in range(0, self.nbytes, CHUNK_BYTES):
            yield self.file.read(self.offset + start, min(CHUNK_BYTES, self.nbytes - start))

    def numpy(self) -> np.ndarray:
        """Reads the tensor; bfloat16 and float8 become float32."""
        elements = np.ascontiguousarray(self._elements()).reshape(self.shape)
        if self.dtype == "BF16":
            bits = elements.astype(np.uint32)
            bits <<= 16
            return bits.view(np.float32)
        if self.dtype in BITS:
            return _float8_values(self.dtype)[elements]
        return elements

    def _elements(self) -> np.ndarray:
        kind = NUMPY_TYPES[self.dtype]
        if self.strides is None:
            return np.frombuffer(self.file.read(self.offset, self.nbytes), kind).reshape(self.shape)
        if 0 in self.shape:
            return np.empty(self.shape, kind)
        span = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides))
        flat = np.frombuffer(self.file.read(self.offset, span * kind.itemsize), kind)
        return np.lib.stride_tricks.as_strided(flat, self.shape, [stride * kind.itemsize for stride in self.strides])


class ArrayTensor:
    """An array in memory with the interface of a `FileTensor`."""

    def __init__(self, array: np.ndarray):
        tags = {kind: tag for tag, kind in NUMPY_TYPES.items() if tag not in BITS}
        if array.dtype not in tags:
            raise UserError(f"cannot store an array of {array.dtype}; convert it to one of {', '.join(map(str, tags))}")
        self.array = array
        self.dtype = tags[array.dtype]
        self.shape, self.nbytes = array.shape, array.nbytes

    def iter_bytes(self) -> Iterator:
        yield np.ascontiguousarray(self.array).reshape(-1).view(np.uint8)

    def numpy(self) -> np.ndarray:
        return self.array


LazyTensor = Union[FileTensor, ArrayTensor]


@cache
def _float8_values(dtype: str) -> np.ndarray:
    """The float32 value of each of the 256 bytes (Micikevicius et al. 2022, arXiv:2209.05433, table 1)."""
    bits = np.arange(256, dtype=np.uint16)
    if dtype == "F8_E5M2":  # the upper half of a float16
        return (bits << 8).view(np.float16).astype(np.float32)
    exponent, mantissa = bits >> 3 & 15, (bits & 7).astype(np.float32) / 8
    magnitude = np.where(exponent == 0, mantissa * 2.0**-6, (1 + mantissa) * np.exp2(exponent.astype(np.float32) - 7))
    magnitude[(bits & 127) == 127] = np.nan  # there is no infinity
    return np.where(bits < 128, magnitude, -magnitude).astype(np.float32)


def is_finite(values: np.ndarray) -> bool:
    """Whether all values are finite: if their sum is, which is fast to compute, or if each of them is."""
    if values.dtype.kind != "f":
        return True
    if values.dtype == np.float16:
        return _no_full_exponent(values.view(np.uint16), 0x7C00)
    with np.errstate(all="ignore"):
        return bool(np.isfinite(np.sum(values)) or np.isfinite(values).all())


def _no_full_exponent(bits: np.ndarray, exponent: int) -> bool:
    """Whether no 16-bit float has all exponent bits set, as NaN and infinity do; numpy is slow with 16-bit floats."""
    return not bool(((bits & exponent) == exponent).any())


def is_finite_chunk(chunk: Union[bytes, bytearray, np.ndarray], dtype: str) -> bool:
    """`is_finite` for a chunk of `iter_bytes()` of a tensor of type `dtype`."""
    values = np.frombuffer(chunk, NUMPY_TYPES[dtype])
    if dtype == "BF16":
        return _no_full_exponent(values, 0x7F80)
    if dtype in BITS:
        return bool(np.isfinite(_float8_values(dtype))[values].all())
    return is_finite(values)


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
