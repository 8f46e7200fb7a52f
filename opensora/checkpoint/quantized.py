"""Weights in blocks of 4 to 8 bits, as GGUF files store them: packing, unpacking and quantizing in numpy.

A block is a run of weights along a row with float16 scales of its own. The layouts are those of ggml; all numbers are
little-endian. With d and dmin the float16 numbers of a block, q its integers, and sc and m the integer scale and
minimum of a sub-block, a weight is

    Q8_0, Q4_0, Q5_0  d q               one d per block of 32 weights
    Q4_K, Q5_K        d sc q - dmin m   eight sub-blocks of 32 weights, sc and m have 6 bits
    Q6_K              d sc q            sixteen sub-blocks of 16 weights, sc has 8 bits
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Callable, NamedTuple, Union

import numpy as np

Q8_BLOCK = 32  # weights that share a scale in Q8_0
# Weights with one of these components in their name are not quantized. No layer follows the transformer's last one, so
# all of its error is in the prediction: 8 to 38 % of that of Q8_0 was measured, for 0.003 % of the weights.
NOT_QUANTIZED = ("proj_out",)


class BlockType(NamedTuple):
    """The number of weights and of bytes of a block."""

    elements: int
    nbytes: int


BLOCK_TYPES = {
    "Q8_0": BlockType(Q8_BLOCK, 34),
    "Q4_0": BlockType(32, 18),
    "Q5_0": BlockType(32, 22),
    "Q4_K": BlockType(256, 144),
    "Q5_K": BlockType(256, 176),
    "Q6_K": BlockType(256, 210),
}
FLOAT16_OFFSETS = {"Q8_0": (0,), "Q4_0": (0,), "Q5_0": (0,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}
Bytes = Union[bytes, bytearray, np.ndarray]


def may_be_q8_0(name: str, shape: Sequence[int]) -> bool:
    """Whether a weight is quantized to Q8_0: a matrix of whole blocks, unless its name is one of `NOT_QUANTIZED`."""
    return len(shape) == 2 and shape[1] % Q8_BLOCK == 0 and not set(name.split(".")).intersection(NOT_QUANTIZED)


def dequantize(data: Bytes, dtype: str) -> np.ndarray:
    """The float32 weights of consecutive blocks.

    Args:
        data: bytes (..., n * nbytes); the leading axes are kept.
        dtype: one of `BLOCK_TYPES`.

    Returns:
        (..., n * elements).
    """
    data = _as_uint8(data)
    elements, nbytes = BLOCK_TYPES[dtype]
    with np.errstate(all="ignore"):  # of scales that are not finite
        weights = _DEQUANTIZE[dtype](data.reshape(data.size // nbytes, nbytes))
    return weights.reshape(*data.shape[:-1], data.shape[-1] // nbytes * elements)


def quantize_q8_0(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest Q8_0 numbers of float32 weights; d = max |w| / 127 in each block of 32.

    A block with NaN or infinity gets a scale that is not finite either.

    Args:
        values: (..., k), k a multiple of 32.

    Returns:
        int8 (..., k) and the float16 scales (..., k / 32).
    """
    blocks = values.astype(np.float32, copy=False).reshape(values.size // Q8_BLOCK, Q8_BLOCK)
    magnitude = np.abs(blocks)
    scale = magnitude.max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(all="ignore"):  # of zeros, of scales below float16's range, and of NaN and infinity
        inverse = np.where(scale == 0, np.float32(0), 1 / scale)
        magnitude *= inverse
        q = np.floor(magnitude)
        magnitude -= q
        q += magnitude >= 0.5  # halves are rounded away from zero
        q[~np.isfinite(q)] = 0
        q = np.copysign(q, blocks).astype(np.int8)
        half = scale.astype(np.float16)
    return q.reshape(values.shape), half.reshape(*values.shape[:-1], values.shape[-1] // Q8_BLOCK)


def pack_q8_0(q: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The blocks of int8 numbers (..., k) and float16 scales (..., k / 32): uint8 (..., k / 32 * 34)."""
    data = np.empty((scale.size, BLOCK_TYPES["Q8_0"].nbytes), np.uint8)
    data[:, :2] = np.ascontiguousarray(scale, "<f2").reshape(-1, 1).view(np.uint8)
    data[:, 2:] = np.ascontiguousarray(q).reshape(-1, Q8_BLOCK).view(np.uint8)
    return data.reshape(*scale.shape[:-1], scale.shape[-1] * data.shape[1])


def unpack_q8_0(data: Bytes) -> tuple[np.ndarray, np.ndarray]:
    """The inverse of `pack_q8_0`."""
    data = _as_uint8(data)
    blocks = data.reshape(data.size // 34, 34)
    count = data.shape[-1] // 34
    q = np.ascontiguousarray(blocks[:, 2:]).view(np.int8).reshape(*data.shape[:-1], count * Q8_BLOCK)
    return q, np.ascontiguousarray(blocks[:, :2]).view("<f2").reshape(*data.shape[:-1], count)


def _as_uint8(data: Bytes) -> np.ndarray:
    return data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)


def _half(blocks: np.ndarray, at: int) -> np.ndarray:
    """The float16 numbers at an offset of each block, (n, 1) float32."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _nibbles(data: np.ndarray) -> np.ndarray:
    """(..., k) bytes -> (..., 2, k): the low four bits, then the high four bits."""
    return np.stack([data & 15, data >> 4], axis=-2)


def _q8_0(blocks: np.ndarray) -> np.ndarray:
    weights = blocks[:, 2:].view(np.int8).astype(np.float32)
    weights *= _half(blocks, 0)
    return weights


def _q4_0(blocks: np.ndarray) -> np.ndarray:
    q = _nibbles(blocks[:, 2:]).reshape(-1, 32)
    return _half(blocks, 0) * (q.view(np.int8) - np.int8(8)).astype(np.float32)


def _q5_0(blocks: np.ndarray) -> np.ndarray:
    fifth = np.unpackbits(blocks[:, 2:6], axis=1, bitorder="little")
    q = _nibbles(blocks[:, 6:]).reshape(-1, 32) | fifth << 4
    return _half(blocks, 0) * (q.view(np.int8) - np.int8(16)).astype(np.float32)


def _k_weights(blocks: np.ndarray, q: np.ndarray) -> np.ndarray:
    """The weights of Q4_K and Q5_K, whose blocks start with the same 16 bytes; q (n, 8, 32)."""
    packed = blocks[:, 4:16]
    low, middle, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scale = np.concatenate([low & 63, high & 15 | (low >> 6) << 4], axis=1)
    minimum = np.concatenate([middle & 63, high >> 4 | (middle >> 6) << 4], axis=1)
    weights = q.astype(np.float32)
    weights *= (_half(blocks, 0) * scale.astype(np.float32))[:, :, None]
    weights -= (_half(blocks, 2) * minimum.astype(np.float32))[:, :, None]
    return weights


def _q4_k(blocks: np.ndarray) -> np.ndarray:
    return _k_weights(blocks, _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32))


def _q5_k(blocks: np.ndarray) -> np.ndarray:
    fifth = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    return _k_weights(blocks, _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32) | fifth << 4)


def _q6_k(blocks: np.ndarray) -> np.ndarray:
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 8, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & 3
    q = (low | high.reshape(-1, 8, 32) << 4).view(np.int8) - np.int8(32)
    scale = _half(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return scale[:, :, None] * q.reshape(-1, 16, 16).astype(np.float32)


_DEQUANTIZE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q5_0": _q5_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
