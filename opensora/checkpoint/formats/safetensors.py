"""Reads and writes safetensors files tensor by tensor, so that files larger than memory are no trouble.

The safetensors package has no bfloat16 for numpy and writes only what is all in memory; the format itself is short:
the header's length (8 bytes), the header (json: name -> dtype, shape, place), the tensors' bytes.
"""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Union

from tqdm import tqdm

from opensora.checkpoint.lazy_tensor import (
    NUMPY_TYPES,
    FileTensor,
    LazyTensor,
    OpenFile,
    element_count,
    few,
    is_finite_piece,
    truncated,
)
from opensora.errors import UserError
from opensora.utils.files import atomic_write
from opensora.utils.json_text import parse_json
from opensora.utils.logs import logger

LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors package too
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_safetensors_file(start: bytes) -> bool:
    """Whether a file with these first bytes is in the safetensors format."""
    return start[8:9] == b"{"


def read_safetensors(path: Union[str, Path]) -> dict[str, FileTensor]:
    """The tensors of a file by name, in the order of the header.

    A file is refused where the format's reference reader (safetensors in Rust) refuses it: the tensors' bytes must
    follow each other without gaps or overlaps and end with the file.

    Raises:
        UserError: a damaged file, or a type of tensor that is not read here.
    """
    file = OpenFile(Path(path))
    (length,) = struct.unpack("<Q", file.read(0, 8))
    if length > LONGEST_HEADER:
        raise UserError(f"{path}: not a safetensors file: its header would have {length} bytes")
    if length > file.size - 8:
        raise truncated(file.path, "the header")
    try:
        header = parse_json(bytes(file.read(8, length)))
        if type(header) is not dict:
            raise UserError("it is no json object")
        _check_metadata(header.pop("__metadata__", None))
        tensors = {name: _stored_tensor(file, 8 + length, entry, name) for name, entry in header.items()}
    except ValueError as error:
        if str(error).startswith(f"{path}: "):
            raise
        raise UserError(f"{path}: a damaged safetensors header ({error}); download or copy the file again") from error
    _check_places(file, 8 + length, tensors)
    return tensors


def _check_metadata(notes: Any) -> None:
    if notes is not None and not (type(notes) is dict and all(type(value) is str for value in notes.values())):
        raise UserError("its __metadata__ is not made of texts")


def _stored_tensor(file: OpenFile, start: int, entry: Any, name: str) -> FileTensor:
    """The tensor of an entry of the header; `start` is where the header ends."""
    try:
        kind, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if (
            type(kind) is not str
            or type(shape) is not list
            or not type(begin) is type(end) is int
            or not 0 <= begin <= end
        ):
            raise UserError("a dtype, shape or data_offsets of a wrong type")
        count = element_count(shape)
        name.encode()  # a text of json may not be one of Unicode
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(f"{name!r:.100}: {error!s:.100}") from error
    if kind not in NUMPY_TYPES:
        raise UserError(f"{file.path}: {name!r:.100} is of type {kind:.20}, which is not read here; save it as float32")
    if count * NUMPY_TYPES[kind].itemsize != end - begin:
        raise UserError(f"{name!r:.100} of shape {shape} and type {kind} has {end - begin} bytes")
    return FileTensor(file, start + begin, tuple(shape), kind)


def _check_places(file: OpenFile, position: int, tensors: Mapping[str, FileTensor]) -> None:
    """Raises UserError unless the tensors' bytes fill the file from `position` to its end, each of them once."""
    for start, size, name in sorted((tensor.offset, tensor.nbytes, name) for name, tensor in tensors.items()):
        if start != position:
            raise UserError(
                f"{file.path}: a damaged safetensors file: the bytes of {name!r:.100} "
                + (
                    "overlap those of another tensor"
                    if start < position
                    else f"begin {start - position} bytes after those of the tensor before end"
                )
            )
        position += size
    if position > file.size:
        raise truncated(file.path)
    if position < file.size:
        raise UserError(
            f"{file.path}: a damaged safetensors file: {file.size - position} bytes after the last tensor "
            f"belong to none; download or copy it again"
        )


def write_safetensors(
    path: Union[str, Path], tensors: Mapping[str, LazyTensor], progress: bool = False, check_finite: bool = False
) -> None:
    """Writes a file tensor by tensor; it appears when whole.

    Args:
        progress: show a bar.
        check_finite: say which tensors hold NaN or infinity.

    Raises:
        UserError: a name that does not end in .safetensors.
        OSError: the disk cannot hold it (found out before writing, where it can be), or cannot be written to.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: the name of a safetensors file should end in .safetensors")
    header, position = {"__metadata__": {"format": "pt"}}, 0
    # Largest element first: every tensor then begins at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: -NUMPY_TYPES[tensors[name].dtype].itemsize)
    for name in names:
        tensor = tensors[name]
        header[name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.nbytes],
        }
        position += tensor.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    total = 8 + len(text) + position
    not_finite = []
    try:
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            _reserve(file, total)
            with tqdm(total=total, desc=path.name, unit="B", unit_scale=True, disable=not progress) as bar:
                file.write(struct.pack("<Q", len(text)) + text)
                bar.update(8 + len(text))
                for name in names:
                    finite = True
                    for piece in tensors[name].raw():
                        file.write(piece)
                        bar.update(len(piece))
                        finite = finite and (not check_finite or is_finite_piece(piece, tensors[name].dtype))
                    if not finite:
                        not_finite.append(name)
            file.flush()
            os.fsync(file.fileno())
        if not_finite:
            logger.warning(f"{path}: {few('tensors hold NaN or infinity', not_finite)}")
    except OSError as error:
        if error.errno in NO_ROOM:
            raise OSError(
                f"{path}: cannot hold {total / 1e9:.3g} GB ({error.strerror}); free room or choose another place"
            ) from error
        raise


def _reserve(file: BinaryIO, size: int) -> None:
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except AttributeError:  # a system without it
        pass
    except OSError as error:  # of other errors: a file system that cannot reserve shows while writing what it holds
        if error.errno in NO_ROOM:
            raise
