"""Reads MindSpore checkpoints (.ckpt) without MindSpore, one tensor at a time.

`mindspore.load_checkpoint` reads a whole file into memory, and a training checkpoint also contains optimizer state of
twice the weights' size. The file is a protocol buffer with the fields

    1 value: { 1 name,  2 tensor: { 1 dimension (repeated),  2 type,  3 bytes } }

The bytes of a large tensor are split into slices: several consecutive values of the same name.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Union

from opensora.checkpoint.element_types import MOST_AXES, element_count
from opensora.checkpoint.lazy_tensor import FileTensor
from opensora.checkpoint.open_file import OpenFile, ScatteredFile, truncated
from opensora.errors import UserError

TYPES = {
    "Float64": "F64",
    "Float32": "F32",
    "Float16": "F16",
    "BFloat16": "BF16",
    "Int64": "I64",
    "Int32": "I32",
    "Int16": "I16",
    "Int8": "I8",
    "UInt64": "U64",
    "UInt32": "U32",
    "UInt16": "U16",
    "UInt8": "U8",
    "Bool": "BOOL",
}
VARINT, BYTES = 0, 2  # wire types
CHECKSUM = b"crc_num"  # follows the values of a file saved with crc_check
WINDOW = 4096  # bytes read at a time; names, shapes and types are close to each other
LONGEST_NAME = 4096
MOST_FIELDS = MOST_AXES + 2  # of a tensor


def is_mindspore_file(start: bytes) -> bool:
    """Whether a file with these first bytes could be a MindSpore checkpoint."""
    return start[:1] == bytes([1 << 3 | BYTES])


def read_mindspore_file(path: Union[str, Path]) -> dict[str, FileTensor]:
    """The tensors of a checkpoint by name; strings and other content are ignored.

    Raises:
        UserError: a damaged or encrypted file.
    """
    file = OpenFile(Path(path))
    reader = _Reader(file)
    tensors: dict[str, FileTensor] = {}
    slices: dict[str, list] = {}
    end = file.size
    if file.size > 17 and file.read(file.size - 17, 7) == CHECKSUM:
        end -= 17
    for field, wire, start, size in reader.fields(0, end):
        if (field, wire) != (1, BYTES):
            raise _damaged(file)
        value = reader.message(start, size, most=3)
        if 2 not in value:  # an embedding table of a recommender model
            continue
        name = reader.text(value.get(1, [(start, 0)])[0])
        shape, kind, place = _tensor(reader, *value[2][0])
        if not name or name in tensors and (tensors[name].shape, tensors[name].dtype) != (shape, TYPES.get(kind)):
            raise _damaged(file)
        if kind in TYPES:
            slices.setdefault(name, []).append(place)
            tensors[name] = FileTensor(file, place[0], shape, TYPES[kind])
    for name, tensor in tensors.items():
        if sum(size for _, size in slices[name]) != tensor.nbytes:
            raise truncated(file.path, name)
        if len(slices[name]) > 1:
            tensors[name] = replace(tensor, file=ScatteredFile(file, slices[name]), offset=0)
    return tensors


def _tensor(reader: _Reader, start: int, size: int) -> tuple:
    """(shape, type name, (offset, size) of the bytes)."""
    fields = reader.message(start, size, most=MOST_FIELDS)
    shape = tuple(value for _, value in fields.get(1, ()))
    try:
        element_count(shape)
    except ValueError as error:
        raise UserError(f"{reader.file.path}: a damaged MindSpore checkpoint ({error})") from error
    kind = reader.text(fields[2][0]) if 2 in fields else ""
    return shape, kind, fields.get(3, [(start, 0)])[0]


class _Reader:
    """Reads a protocol buffer through a window of the file, so that short fields need no system calls."""

    def __init__(self, file: OpenFile):
        self.file = file
        self.start, self.data = 0, bytearray()

    def message(self, start: int, size: int, most: int) -> dict[int, list]:
        """The (offset, size) of a message's fields by field number; for integers, (offset, value)."""
        found: dict[int, list] = {}
        for count, (number, _, *place) in enumerate(self.fields(start, start + size)):
            if count == most or not 1 <= number <= 3:
                raise _damaged(self.file)
            found.setdefault(number, []).append(tuple(place))
        return found

    def fields(self, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
        """(field number, wire type, offset, size) of each field; for integers, the value instead of the size."""
        while position < end:
            key, position = self._varint(position)
            value, position = self._varint(position)
            if key & 7 not in (VARINT, BYTES):
                raise _damaged(self.file)
            yield key >> 3, key & 7, position, value
            if key & 7 == BYTES:
                position += value
            if position > end:
                raise truncated(self.file.path)

    def text(self, place: tuple) -> str:
        start, size = place
        if size > LONGEST_NAME:
            raise _damaged(self.file)
        return self.file.read(start, size).decode("utf-8", errors="replace")

    def _varint(self, position: int) -> tuple[int, int]:
        """An integer of 7 bits per byte, lowest first, and the position after it."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte(position)
            position += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value, position
        raise _damaged(self.file)

    def _byte(self, position: int) -> int:
        if not self.start <= position < self.start + len(self.data):
            if position >= self.file.size:
                raise truncated(self.file.path)
            self.start = position
            self.data = self.file.read(position, min(WINDOW, self.file.size - position))
        return self.data[position - self.start]


def _damaged(file: OpenFile) -> UserError:
    return UserError(f"{file.path}: not a MindSpore checkpoint, or a damaged or encrypted one")
