"""Reads and writes safetensors files one tensor at a time, so files may be larger than memory.

The safetensors package has no bfloat16 for numpy and writes only tensors that are all in memory. The format is the
header's length (8 bytes), the header (json: name -> dtype, shape, data_offsets) and the tensors' bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Union

from opensora.checkpoint.element_types import NUMPY_TYPES, element_count
from opensora.checkpoint.formats.tensor_writer import write_tensors
from opensora.checkpoint.lazy_tensor import FileTensor, LazyTensor
from opensora.checkpoint.open_file import OpenFile, truncated
from opensora.errors import UserError
from opensora.utils.json_text import parse_json

LONGEST_HEADER = 100_000_000  # bytes, as in the safetensors package
METADATA = "__metadata__"  # the key of the header that is not a tensor


def is_safetensors_file(start: bytes) -> bool:
    """Whether a file with these first bytes is in the safetensors format."""
    return start[8:9] == b"{"


def read_safetensors(path: Union[str, Path]) -> dict[str, FileTensor]:
    """The tensors of a file by name, in the order of the header.

    Rejects the files that the reference implementation (safetensors in Rust) rejects: the tensors' bytes must be
    contiguous, without overlaps, and end with the file.

    Raises:
        UserError: a damaged file, or an unsupported tensor type.
    """
    file, start, header = _read_header(path)
    with _naming_errors(file.path):
        tensors = {name: _stored_tensor(file, start, entry, name) for name, entry in header.items() if name != METADATA}
    _check_places(file, start, tensors)
    return tensors


def read_metadata(path: Union[str, Path]) -> dict[str, str]:
    """The texts that a file's header holds in addition to the tensors, such as `format`, by key.

    Raises:
        UserError: a damaged header.
    """
    _, _, header = _read_header(path)
    return header.get(METADATA) or {}


def _read_header(path: Union[str, Path]) -> tuple[OpenFile, int, dict[str, Any]]:
    """The open file, the end of its header and the header, whose metadata are checked."""
    file = OpenFile(Path(path))
    (length,) = struct.unpack("<Q", file.read(0, 8))
    if length > LONGEST_HEADER:
        raise UserError(f"{path}: not a safetensors file, or a damaged one: a header of {length} bytes")
    if length > file.size - 8:
        raise truncated(file.path, "the header")
    with _naming_errors(file.path):
        header = parse_json(bytes(file.read(8, length)))
        if type(header) is not dict:
            raise UserError("not a json object")
        _check_metadata(header.get(METADATA))
    return file, 8 + length, header


@contextmanager
def _naming_errors(path: Path) -> Iterator[None]:
    """Has errors of a header name the file."""
    try:
        yield
    except ValueError as error:
        if str(error).startswith(f"{path}: "):
            raise
        raise UserError(f"{path}: a damaged safetensors header ({error}); download or copy the file again") from error


def _check_metadata(notes: Any) -> None:
    if notes is not None and not (type(notes) is dict and all(type(value) is str for value in notes.values())):
        raise UserError(f"{METADATA} must map strings to strings")


def _stored_tensor(file: OpenFile, start: int, entry: Any, name: str) -> FileTensor:
    """The tensor of a header entry; `start` is the end of the header."""
    try:
        kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if (
            type(kind) is not str
            or type(shape) is not list
            or not type(begin) is type(end) is int
            or not 0 <= begin <= end
        ):
            raise UserError("dtype, shape or data_offsets have a wrong type")
        count = element_count(shape)
        name.encode()  # json strings may contain lone surrogates
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{name!r:.100}: {error!s:.100}") from error
    if kind not in NUMPY_TYPES:
        raise UserError(f"{file.path}: {name!r:.100} has the unsupported type {kind:.20}; save it as float32")
    if count * NUMPY_TYPES[kind].itemsize != end - begin:
        raise UserError(f"{name!r:.100} of shape {shape} and type {kind} cannot have {end - begin} bytes")
    return FileTensor(file, start + begin, tuple(shape), kind)


def _check_places(file: OpenFile, position: int, tensors: Mapping[str, FileTensor]) -> None:
    """Raises UserError unless the tensors fill the file from `position` to its end without gaps or overlaps."""
    for start, size, name in sorted((tensor.offset, tensor.nbytes, name) for name, tensor in tensors.items()):
        if start != position:
            raise UserError(
                f"{file.path}: a damaged safetensors file: the bytes of {name!r:.100} "
                + (
                    "overlap those of another tensor"
                    if start < position
                    else f"start {start - position} bytes after the end of the preceding tensor"
                )
            )
        position += size
    if position > file.size:
        raise truncated(file.path)
    if position < file.size:
        raise UserError(
            f"{file.path}: a damaged safetensors file: {file.size - position} bytes after the last tensor "
            f"are unused; download or copy the file again"
        )


def write_safetensors(
    path: Union[str, Path],
    tensors: Mapping[str, LazyTensor],
    progress: bool = False,
    check_finite: bool = False,
    metadata: Mapping[str, str] = {},
) -> None:
    """Writes a file one tensor at a time, atomically.

    Args:
        path: must end in .safetensors.
        tensors: by name.
        progress: show a progress bar.
        check_finite: report tensors with NaN or infinity on stderr.
        metadata: texts for the header, see `read_metadata`. `format` is always "pt", which PyTorch's readers require.

    Raises:
        UserError: a path that does not end in .safetensors, or a tensor type that safetensors does not have.
        OSError: the disk is full (checked before writing, if the file system allows it) or not writable.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: the name of a safetensors file must end in .safetensors")
    for name, tensor in tensors.items():
        if tensor.dtype not in NUMPY_TYPES:
            raise UserError(
                f"{path}: {name!r:.100} is {tensor.dtype}, which safetensors does not have; convert --to bf16"
            )
    header: dict[str, Any] = {METADATA: {**metadata, "format": "pt"}}
    position = 0
    # Sorted by element size, largest first, so that every tensor is aligned to its element size.
    ordered = dict(sorted(tensors.items(), key=lambda item: -NUMPY_TYPES[item[1].dtype].itemsize))
    for name, tensor in ordered.items():
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.nbytes],
        }
        position += tensor.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    write_tensors(path, struct.pack("<Q", len(text)) + text, ordered, 1, progress, check_finite)
