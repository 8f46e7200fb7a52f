"""Reads MindSpore checkpoints (.ckpt) without MindSpore, tensor by tensor.

`mindspore.load_checkpoint` takes a whole file into memory, and one of a training run holds twice the weights' size in
optimizer state besides. The file is a protocol buffer of the fields

    1 value: { 1 name,  2 tensor: { 1 dimension (repeated),  2 type,  3 bytes } }

A large tensor's bytes are cut into slices: several values of the same name, one after the other.
"""
from __future__ import annotations

from pathlib import Path
from typing import Iterator, Union

from opensora.models.tensor_file import OpenFile, ScatteredFile, StoredTensor, cut_off

TYPES = {
    "Float64": "F64", "Float32": "F32", "Float16": "F16", "BFloat16": "BF16", "Int64": "I64", "Int32": "I32",
    "Int16": "I16", "Int8": "I8", "UInt8": "U8", "Bool": "BOOL",
}
VARINT, BYTES = 0, 2  # wire types
CHECKSUM = b"crc_num"  # what follows the values of a file saved with crc_check


def is_mindspore_file(start: bytes) -> bool:
    """Whether a file with these first bytes could be a MindSpore checkpoint."""
    return start[:1] == bytes([1 << 3 | BYTES])


def read_mindspore_file(path: Union[str, Path]) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint by name; texts and what else it may hold are left out.

    Raises:
        ValueError: a damaged or encrypted file.
    """
    file = OpenFile(Path(path))
    tensors, slices = {}, {}
    end = file.size
    if file.size > 17 and file.read(file.size - 17, 7) == CHECKSUM:
        end -= 17
    for field, _, start, size in _fields(file, 0, end):
        value = {number: place for number, _, *place in _fields(file, start, start + size)}
        if field != 1 or 1 not in value:
            raise _damaged(file)
        if 2 not in value:  # a table of a recommender model
            continue
        name = _text(file, *value[1])
        shape, kind, place = _tensor(file, *value[2])
        if kind in TYPES:
            slices.setdefault(name, []).append(place)
            tensors[name] = StoredTensor(file, place[0], shape, TYPES[kind])
    for name, tensor in tensors.items():
        if sum(size for _, size in slices[name]) != tensor.nbytes:
            raise cut_off(file.path, name)
        if len(slices[name]) > 1:
            tensors[name] = tensor._replace(file=ScatteredFile(file, slices[name]), offset=0)
    return tensors


def _tensor(file: OpenFile, start: int, size: int) -> tuple:
    """(shape, name of the type, (offset, size) of the bytes)."""
    shape, kind, place = [], "", (start, 0)
    for number, wire, at, length in _fields(file, start, start + size):
        if number == 1 and wire == VARINT:
            shape.append(length)
        elif number == 2:
            kind = _text(file, at, length)
        elif number == 3:
            place = (at, length)
    return tuple(shape), kind, place


def _fields(file: OpenFile, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field number, wire type, offset, size) of each field; of a number, its value stands for the size."""
    while position < end:
        key, position = _varint(file, position)
        value, position = _varint(file, position)
        if key & 7 == VARINT:
            yield key >> 3, VARINT, position, value
        elif key & 7 == BYTES:
            if position + value > end:
                raise cut_off(file.path)
            yield key >> 3, BYTES, position, value
            position += value
        else:
            raise _damaged(file)


def _varint(file: OpenFile, position: int) -> tuple[int, int]:
    """A number of 7 bits a byte, the lowest first, and the position after it."""
    value = 0
    for i, byte in enumerate(file.read(position, min(10, file.size - position))):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, position + i + 1
    raise _damaged(file)


def _text(file: OpenFile, start: int, size: int) -> str:
    return file.read(start, size).decode("utf-8", errors="replace")


def _damaged(file: OpenFile) -> ValueError:
    return ValueError(f"{file.path}: not a MindSpore checkpoint, or a damaged or encrypted one")
