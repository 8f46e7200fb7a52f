"""The types of stored numbers, and their conversion to values of numpy and back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Union

import numpy as np

from opensora.checkpoint.quantized import BLOCK_TYPES, FLOAT16_OFFSETS, BlockType, dequantize, pack_q8_0, quantize_q8_0
from opensora.errors import UserError

MOST_AXES = 32  # numpy's limit
LARGEST_TENSOR = 1 << 48  # elements
CACHED_VALUES = 1 << 18  # whose temporaries fit in a CPU's cache

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
FLOATS = ("F64", "F32", "F16", *BITS, *BLOCK_TYPES)


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


def storage_unit(dtype: str) -> BlockType:
    """The smallest number of elements that is stored in whole bytes, and these bytes."""
    return BLOCK_TYPES.get(dtype) or BlockType(1, NUMPY_TYPES[dtype].itemsize)


def stored_type(dtype: str) -> np.dtype:
    """The numpy type of stored numbers: integers for the bits of BF16 and float8, bytes for blocks."""
    return NUMPY_TYPES.get(dtype, NUMPY_TYPES["U8"])


def value_type(dtype: str) -> np.dtype:
    """The numpy type of values: float32 for BF16, float8 and blocks."""
    return NUMPY_TYPES["F32" if dtype in BITS or dtype in BLOCK_TYPES else dtype]


def decode(stored: np.ndarray, dtype: str) -> np.ndarray:
    """The values of stored numbers, see `stored_type` and `value_type`."""
    if dtype == "BF16":
        bits = stored.astype(np.uint32)
        bits <<= 16
        return bits.view(np.float32)
    if dtype in BITS:
        return _float8_values(dtype)[stored]
    return dequantize(stored, dtype) if dtype in BLOCK_TYPES else stored


def byte_count(shape: Sequence[int], dtype: str) -> int:
    """The bytes of a tensor."""
    elements, nbytes = storage_unit(dtype)
    return math.prod(shape) // elements * nbytes


def encode(values: np.ndarray, dtype: str, name: str) -> np.ndarray:
    """Values in F32, F16, BF16 or Q8_0, as `stored_type`; rounded to the nearest, ties to even (Q8_0: away from zero).

    Raises:
        UserError: numbers that float16 does not reach, in the tensor `name`.
    """
    if dtype == "F16":
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if not np.isfinite(half[np.isfinite(values)]).all():
            largest = np.abs(values[np.isfinite(values)]).max()
            raise UserError(f"{name}: holds {largest:g}, more than float16's 65504; leave the file as it is")
        return half
    values = values.astype(np.float32, copy=False)
    if dtype == "BF16":
        bits = values.view(np.uint32)
        rounded = (bits + (np.uint32(0x7FFF) + (bits >> 16 & 1))) >> 16
        quiet = bits >> 16 | 64  # NaN whatever bits are lost
        return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)
    return pack_q8_0(*quantize_q8_0(values)) if dtype == "Q8_0" else values


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
    flat = bits.reshape(-1)
    ranges = (flat[start : start + CACHED_VALUES] for start in range(0, flat.size, CACHED_VALUES))
    return not any(((some & exponent) == exponent).any() for some in ranges)


def is_finite_chunk(chunk: Union[bytes, bytearray, np.ndarray], dtype: str) -> bool:
    """`is_finite` for a chunk of `iter_bytes()` of a tensor of type `dtype`."""
    values = np.frombuffer(chunk, stored_type(dtype))
    if dtype in BLOCK_TYPES:
        blocks = values.reshape(-1, BLOCK_TYPES[dtype].nbytes)
        scales = [np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2") for at in FLOAT16_OFFSETS[dtype]]
        return all(map(is_finite, scales))
    if dtype == "BF16":
        return _no_full_exponent(values, 0x7F80)
    if dtype in BITS:
        return bool(np.isfinite(_float8_values(dtype))[values].all())
    return is_finite(values)
