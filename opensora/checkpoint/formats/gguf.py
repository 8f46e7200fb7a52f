"""Reads and writes GGUF files, the container of ggml, one tensor at a time.

Version 3, little-endian: "GGUF", version (u32), numbers of tensors and of keys (u64 each); for each key name, type and
value; for each tensor name, sizes from the innermost axis outwards, type and offset; then at the next multiple of
`general.alignment` the tensors' bytes, each at such a multiple. Version 2 has the same layout.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union

from opensora.checkpoint import t5_names
from opensora.checkpoint.element_types import BLOCK_TYPES, MOST_AXES, element_count, storage_unit
from opensora.checkpoint.formats.tensor_writer import padded, write_tensors
from opensora.checkpoint.lazy_tensor import FileTensor, LazyTensor
from opensora.checkpoint.open_file import OpenFile, truncated
from opensora.errors import UserError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # bytes, if general.alignment is absent
LARGEST_ALIGNMENT = 1 << 16
LONGEST_HEADER = 100_000_000  # bytes; the vocabulary of mT5 takes 8 MB
LONGEST_NAME = 1000  # bytes
DEEPEST_ARRAY = 4
WINDOW = 1 << 20  # bytes of the header that are read at a time

TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    6: "Q5_0",
    8: "Q8_0",
    12: "Q4_K",
    13: "Q5_K",
    14: "Q6_K",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    30: "BF16",
}
OTHER_TYPES = {
    **{3: "Q4_1", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS"},
    **{18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M"},
    **{34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4"},
}
CODES = {name: code for code, name in TYPES.items()}
SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9

ARCHITECTURE = "general.architecture"
OWN_PREFIX = "opensora"  # of the architecture of files with torch names


def is_gguf_file(start: bytes) -> bool:
    """Whether a file with these first bytes is a GGUF file."""
    return start.startswith(MAGIC)


def read_gguf(path: Union[str, Path]) -> tuple[dict[str, LazyTensor], dict[str, Any]]:
    """The tensors of a file by torch name, and its metadata without arrays.

    Time and memory are bounded by the file's length, not by numbers that the file claims.

    Raises:
        UserError: a damaged file, a tensor type that is not supported, or a model that is not one of this project.
    """
    file = OpenFile(Path(path))
    try:
        metadata, tensors = _read_header(_Header(file))
    except _Damaged as error:
        raise UserError(f"{path}: a damaged GGUF header ({error}); download or copy the file again") from error
    if metadata[ARCHITECTURE] in t5_names.ARCHITECTURES:
        names = {name: t5_names.torch_name(name) for name in tensors}
        if len(set(names.values())) < len(names):
            raise UserError(f"{path}: has tensors twice, under their GGUF names and their torch names")
        tensors = {names[name]: tensor for name, tensor in tensors.items()}
    return tensors, metadata


class _Damaged(Exception):
    """The header is damaged; the message says how."""


class _Header:
    """Reads the header through a window of the file, so that short fields need no system calls."""

    def __init__(self, file: OpenFile):
        self.file = file
        self.position = 0
        self._start, self._window = 0, bytearray()

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        end = self.position + size
        if end > self.file.size:
            raise truncated(self.file.path, "the header")
        if end > LONGEST_HEADER:
            raise _Damaged(f"longer than {LONGEST_HEADER} bytes")
        if end > self._start + len(self._window):
            self._start = self.position
            self._window = self.file.read(self._start, min(max(size, WINDOW), self.file.size - self._start))
        data = self._window[self.position - self._start : end - self._start]
        self.position = end
        return bytes(data)

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def name(self) -> str:
        length = self.number("<Q")
        if length > LONGEST_NAME:
            raise _Damaged(f"a name of {length} bytes")
        return self.text(length)

    def text(self, length: int) -> str:
        return self.take(length).decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = DEEPEST_ARRAY) -> Any:
        """A value of the metadata; None for an array, which is skipped."""
        if kind in SCALARS:
            return self.number(SCALARS[kind])
        if kind == STRING:
            return self.text(self.number("<Q"))
        if kind != ARRAY or not depth:
            raise _Damaged(f"a value of the unknown type {kind}" if depth else "nested too deep")
        item, count = self.number("<I"), self.number("<Q")
        if item in SCALARS:
            self.take(count * struct.calcsize(SCALARS[item]))
        else:
            for _ in range(count):  # each item takes at least 8 bytes, so the end of the file ends the loop
                self.value(item, depth - 1)
        return None


def _read_header(header: _Header) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
    """(metadata, tensors by the names in the file)."""
    file = header.file
    if not is_gguf_file(header.take(4)):
        raise UserError(f"{file.path}: not a GGUF file")
    version = header.number("<I")
    if version not in VERSIONS:
        is_big_endian = version and version & 0xFFFF == 0
        raise UserError(
            f"{file.path}: a GGUF file "
            + ("of a big-endian machine; convert it on one" if is_big_endian else f"of version {version}")
            + f"; versions {VERSIONS[0]} and {VERSIONS[1]} are supported, little-endian"
        )
    tensor_count, key_count = header.number("<Q"), header.number("<Q")
    metadata: dict[str, Any] = {}
    for _ in range(key_count):
        key = header.name()
        if key in metadata:
            raise _Damaged(f"the key {key!r:.100} comes twice")
        metadata[key] = header.value(header.number("<I"))
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= LARGEST_ALIGNMENT or alignment & (alignment - 1):
        raise _Damaged(f"general.alignment {alignment!r:.60} is not a power of two up to {LARGEST_ALIGNMENT}")
    _check_architecture(file, metadata.get(ARCHITECTURE))
    entries: dict[str, tuple] = {}
    for _ in range(tensor_count):
        name = header.name()
        if name in entries:
            raise _Damaged(f"the tensor {name!r:.100} comes twice")
        entries[name] = _read_entry(header, name, alignment)
    start = padded(header.position, alignment)
    tensors = {name: FileTensor(file, start + offset, shape, dtype) for name, (shape, dtype, offset) in entries.items()}
    _check_places(file, start, tensors, alignment)
    return metadata, dict(tensors)


def _check_architecture(file: OpenFile, name: Any) -> None:
    if name not in t5_names.ARCHITECTURES and not str(name).startswith(OWN_PREFIX):
        raise UserError(
            f"{file.path}: "
            + (f"has no {ARCHITECTURE}" if name is None else f"holds a {name!s:.60} model")
            + f"; supported are {' and '.join(t5_names.ARCHITECTURES)}, and files of `opensora convert`"
        )


def _read_entry(header: _Header, name: str, alignment: int) -> tuple[tuple, str, int]:
    """(shape, type, offset) of the tensor whose name was read."""
    axes = header.number("<I")
    if axes > MOST_AXES:
        raise _Damaged(f"{name!r:.100} has {axes} axes")
    shape = struct.unpack(f"<{axes}Q", header.take(8 * axes))[::-1]
    code, offset = header.number("<I"), header.number("<Q")
    if code not in TYPES:
        raise UserError(
            f"{header.file.path}: {name!r:.100} has the type {OTHER_TYPES.get(code, code)}, which is not supported; "
            f"supported are {', '.join(TYPES.values())}"
        )
    try:
        element_count(shape)
    except ValueError as error:
        raise _Damaged(f"{name!r:.100}: {error}") from error
    if TYPES[code] in BLOCK_TYPES and (not shape or shape[-1] % storage_unit(TYPES[code]).elements):
        raise _Damaged(f"{name!r:.100} of shape {shape} cannot have the type {TYPES[code]}")
    if offset % alignment:
        raise _Damaged(f"{name!r:.100} is not aligned to {alignment} bytes")
    return shape, TYPES[code], offset


def _check_places(file: OpenFile, position: int, tensors: Mapping[str, FileTensor], alignment: int) -> None:
    """Raises an error unless the tensors fill the file from `position` to its end, up to the alignment."""
    for start, size, name in sorted((tensor.offset, tensor.nbytes, name) for name, tensor in tensors.items()):
        if start != padded(position, alignment):
            raise _Damaged(f"the bytes of {name!r:.100} do not follow those of the preceding tensor")
        position = start + size
    if position > file.size:
        raise truncated(file.path)
    if padded(position, alignment) < file.size:
        raise _Damaged(f"{file.size - position} bytes after the last tensor are unused")


def write_gguf(
    path: Union[str, Path],
    tensors: Mapping[str, LazyTensor],
    metadata: Mapping[str, Any],
    progress: bool = False,
    check_finite: bool = False,
) -> None:
    """Writes a file of version 3, one tensor at a time, atomically.

    Args:
        path: must end in .gguf.
        tensors: by torch name.
        metadata: text, bool, int (stored as u32) and float (stored as float32) by key; with `general.architecture`.
        progress: show a progress bar.
        check_finite: report tensors with NaN or infinity on stderr.

    Raises:
        UserError: a path that does not end in .gguf, or a tensor type that GGUF does not have.
        OSError: the disk is full (checked before writing, if the file system allows it) or not writable.
    """
    path = Path(path)
    if path.suffix != ".gguf":
        raise UserError(f"{path}: the name of a GGUF file must end in .gguf")
    if metadata[ARCHITECTURE] in t5_names.ARCHITECTURES:
        tensors = {t5_names.gguf_name(name): tensor for name, tensor in tensors.items()}
    metadata = {**metadata, "general.alignment": ALIGNMENT}
    header = MAGIC + struct.pack("<IQQ", VERSIONS[-1], len(tensors), len(metadata))
    for key, value in metadata.items():
        header += _text(key) + _value(value)
    position = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in CODES:
            raise UserError(f"{path}: {name!r:.100} is {tensor.dtype}, which GGUF does not have")
        sizes = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *reversed(tensor.shape))
        header += _text(name) + sizes + struct.pack("<IQ", CODES[tensor.dtype], position)
        position += padded(tensor.nbytes, ALIGNMENT)
    header += bytes(padded(len(header), ALIGNMENT) - len(header))
    write_tensors(path, header, tensors, ALIGNMENT, progress, check_finite)


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Union[str, bool, int, float]) -> bytes:
    """The type and the value of a key."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    code = 7 if isinstance(value, bool) else 4 if isinstance(value, int) else 6
    return struct.pack("<I", code) + struct.pack(SCALARS[code], value)
