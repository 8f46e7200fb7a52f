"""Reads and writes safetensors files tensor by tensor, so that files larger than memory are no trouble.

The safetensors package has no bfloat16 for numpy and writes only what is all in memory; the format itself is short:
the header's length (8 bytes), the header (json: name -> dtype, shape, place), the tensors' bytes.
"""
from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Iterator, Mapping, Union

import numpy as np
from tqdm import tqdm

from opensora.models.tensor_file import NUMPY_TYPES, OpenFile, StoredTensor
from opensora.utils.files import atomic_write

LONGEST_HEADER = 100 << 20  # bytes; the limit of the safetensors package too


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
        tensors = {}
        for name, entry in header.items():
            if entry["dtype"] not in NUMPY_TYPES:
                raise ValueError(f"{path}: {name} is of type {entry['dtype']}, which is not read here")
            begin, end = entry["data_offsets"]
            tensors[name] = StoredTensor(file, 8 + length + begin, tuple(entry["shape"]), entry["dtype"])
            if begin < 0 or tensors[name].nbytes != end - begin or 8 + length + end > file.size:
                raise ValueError(f"{path}: {name} is cut off; download or copy the file again")
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: a damaged safetensors header ({error})") from error
    return tensors


class ArrayTensor:
    """An array in memory with the face of a `StoredTensor`."""

    def __init__(self, array: np.ndarray):
        tags = {kind: tag for tag, kind in NUMPY_TYPES.items() if tag != "BF16"}
        if array.dtype not in tags:
            raise ValueError(f"an array of {array.dtype} cannot be stored")
        self.array = array
        self.dtype = tags[array.dtype]
        self.shape, self.nbytes = array.shape, array.nbytes

    def raw(self) -> Iterator[bytes]:
        yield np.ascontiguousarray(self.array).tobytes()

    def numpy(self) -> np.ndarray:
        return self.array


AnyTensor = Union[StoredTensor, ArrayTensor]


def write_safetensors(path: Union[str, Path], tensors: Mapping[str, AnyTensor], progress: bool = False) -> None:
    """Writes a file tensor by tensor; it appears when whole.

    Raises:
        OSError: the disk cannot hold it (found out before writing), or cannot be written to.
    """
    path = Path(path)
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
    with atomic_write(path) as temporary, open(temporary, "wb") as file, \
            tqdm(total=total, desc=path.name, unit="B", unit_scale=True, disable=not progress) as bar:
        _reserve(file, total, path)
        file.write(struct.pack("<Q", len(text)) + text)
        bar.update(8 + len(text))
        for name in names:
            for piece in tensors[name].raw():
                file.write(piece)
                bar.update(len(piece))
        file.flush()
        os.fsync(file.fileno())


def _reserve(file, size: int, path: Path) -> None:
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except AttributeError:  # a system without it
        pass
    except OSError as error:
        raise OSError(f"{path}: cannot hold {size / 1e9:.3g} GB ({error.strerror}); free room or choose another "
                      f"place") from error
