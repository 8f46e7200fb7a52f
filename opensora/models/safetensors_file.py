"""Reads and writes safetensors files tensor by tensor, so that files larger than memory are no trouble.

The safetensors package has no bfloat16 for numpy and writes only what is all in memory; the format itself is short:
the header's length (8 bytes), the header (json: name -> dtype, shape, place), the tensors' bytes.
"""
from __future__ import annotations

import errno
import json
import os
import struct
from operator import index
from pathlib import Path
from typing import BinaryIO, Mapping, Union

from tqdm import tqdm

from opensora.models.tensor_file import NUMPY_TYPES, AnyTensor, OpenFile, StoredTensor, cut_off
from opensora.utils.files import atomic_write

LONGEST_HEADER = 100 << 20  # bytes; the limit of the safetensors package too
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_safetensors_file(start: bytes) -> bool:
    """Whether a file with these first bytes is in the safetensors format."""
    return start[8:9] == b"{"


def read_safetensors(path: Union[str, Path]) -> dict[str, StoredTensor]:
    """The tensors of a file by name.

    Raises:
        ValueError: a damaged file, or a type of tensor that is not read here.
    """
    file = OpenFile(Path(path))
    (length,) = struct.unpack("<Q", file.read(0, 8))
    if length > min(LONGEST_HEADER, file.size - 8):
        raise ValueError(f"{path}: not a safetensors file, or one that is cut off; download or copy it again")
    try:
        header = json.loads(bytes(file.read(8, length)))
        header.pop("__metadata__", None)
        entries = [(name, str(entry["dtype"]), tuple(map(index, entry["shape"])), *map(index, entry["data_offsets"]))
                   for name, entry in header.items()]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: a damaged safetensors header ({error})") from error
    tensors = {}
    for name, kind, shape, begin, end in entries:
        if kind not in NUMPY_TYPES:
            raise ValueError(f"{path}: {name} is of type {kind}, which is not read here")
        tensors[name] = StoredTensor(file, 8 + length + begin, shape, kind)
        if min(begin, *shape, 0) < 0 or tensors[name].nbytes != end - begin or 8 + length + end > file.size:
            raise cut_off(file.path, name)
    return tensors


def write_safetensors(path: Union[str, Path], tensors: Mapping[str, AnyTensor], progress: bool = False) -> None:
    """Writes a file tensor by tensor; it appears when whole.

    Raises:
        ValueError: a name that does not end in .safetensors.
        OSError: the disk cannot hold it (found out before writing, where it can be), or cannot be written to.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"{path}: the name of a safetensors file should end in .safetensors")
    header, position = {"__metadata__": {"format": "pt"}}, 0
    # Largest element first: every tensor then begins at a multiple of its element's size.
    names = sorted(tensors, key=lambda name: -NUMPY_TYPES[tensors[name].dtype].itemsize)
    for name in names:
        tensor = tensors[name]
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape),
                        "data_offsets": [position, position + tensor.nbytes]}
        position += tensor.nbytes
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    total = 8 + len(text) + position
    try:
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            _reserve(file, total)
            with tqdm(total=total, desc=path.name, unit="B", unit_scale=True, disable=not progress) as bar:
                file.write(struct.pack("<Q", len(text)) + text)
                bar.update(8 + len(text))
                for name in names:
                    for piece in tensors[name].raw():
                        file.write(piece)
                        bar.update(len(piece))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.errno in NO_ROOM:
            raise OSError(f"{path}: cannot hold {total / 1e9:.3g} GB ({error.strerror}); free room or choose another "
                          f"place") from error
        raise


def _reserve(file: BinaryIO, size: int) -> None:
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except AttributeError:  # a system without it
        pass
    except OSError as error:  # of other errors: a file system that cannot reserve shows while writing what it holds
        if error.errno in NO_ROOM:
            raise
