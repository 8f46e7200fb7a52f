"""Reads files that torch.save wrote, without torch and without running anything in them.

A torch file is a pickle, which can name any Python function to call, and the bytes of its tensors. The unpickler here
knows only the names that rebuild tensors, and gives inert functions of its own for them; any other name is refused.
Tensors stay in the file until they are asked for. Both formats are read: the zip archive (PyTorch 1.6 and later) and
the older sequence of pickles.
"""
from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, Optional, Union

from opensora.models.tensor_file import NUMPY_TYPES, OpenFile, StoredTensor, contiguous_strides

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = pickle.dumps(LEGACY_MAGIC, protocol=2)
ZIP_START = b"PK\x03\x04"

STORAGE_TYPES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "UntypedStorage": None,
}
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}


class _Named:
    """Stands for a type or dtype of torch; `tag` is its name in safetensors (None: bytes of any type)."""

    __slots__ = ("tag",)

    def __init__(self, tag: Optional[str]):
        self.tag = tag


class _Storage:
    """A run of elements in the file. `offset`, in bytes, may be known only after the pickle has been read."""

    __slots__ = ("tag", "count", "offset")

    def __init__(self, tag: Optional[str], count: int, offset: Optional[int] = None):
        self.tag, self.count, self.offset = tag, count, offset


class _View:
    """A tensor as the pickle describes it, before its storage's place is known."""

    __slots__ = ("storage", "start", "shape", "strides", "tag")

    def __init__(self, storage, start, shape, strides, tag):
        if not isinstance(storage, _Storage) or tag not in NUMPY_TYPES:
            raise pickle.UnpicklingError("a tensor without a storage")
        self.storage, self.start, self.tag = storage, int(start), tag
        self.shape, self.strides = tuple(map(int, shape)), tuple(map(int, strides))

    def stored(self, file: OpenFile) -> StoredTensor:
        size = NUMPY_TYPES[self.tag].itemsize
        count = self.storage.count if self.storage.tag else self.storage.count // size
        last = self.start + sum((n - 1) * s for n, s in zip(self.shape, self.strides))
        numbers = (self.start, *self.shape, *self.strides)
        if len(self.shape) != len(self.strides) or min(numbers) < 0 or (0 not in self.shape and last >= count):
            raise ValueError(f"{file.path}: a tensor reaches out of its storage; the file is damaged")
        strides = None if self.strides == contiguous_strides(self.shape) else self.strides
        return StoredTensor(file, self.storage.offset + self.start * size, self.shape, self.tag, strides)


def _rebuild_tensor(storage, start, shape, strides, *_):
    return _View(storage, start, shape, strides, getattr(storage, "tag", None))


def _rebuild_tensor_v3(storage, start, shape, strides, requires_grad, hooks, dtype, *_):
    return _View(storage, start, shape, strides, getattr(dtype, "tag", None))


def _first(value, *_):
    return value


def _nothing(*_):
    return None


ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _first,
    ("torch._utils", "_rebuild_parameter_with_state"): _first,
    ("torch", "Size"): tuple,
    ("torch", "device"): _nothing,
    ("torch.storage", "UntypedStorage"): _Named(None),
    **{("torch", name): _Named(tag) for name, tag in {**STORAGE_TYPES, **DTYPES}.items()},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: BinaryIO, path: Path, find_storage):
        super().__init__(stream, encoding="utf-8")
        self.path, self.find_storage = path, find_storage

    def find_class(self, module: str, name: str):
        if (module, name) not in ALLOWED:
            raise ValueError(f"{self.path}: names {module}.{name}, which is not part of a tensor; refused, since "
                             f"running it could do anything. Save a plain state dict, or use safetensors")
        return ALLOWED[module, name]

    def persistent_load(self, pid):
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], _Named):
            raise pickle.UnpicklingError(f"unknown reference {pid!r:.60}")
        return self.find_storage(pid[1].tag, str(pid[2]), int(pid[4]), pid[5] if len(pid) > 5 else None)


def is_torch_file(start: bytes) -> bool:
    """Whether a file with these first bytes is one of torch.save."""
    return start.startswith((ZIP_START, LEGACY_START))


def read_torch_file(path: Union[str, Path]) -> Any:
    """What torch.save was given: dicts, lists and numbers, with a `StoredTensor` for every tensor.

    Raises:
        ValueError: a damaged file, or one that names anything but tensors.
    """
    path = Path(path)
    with open(path, "rb") as file:
        start = file.read(len(LEGACY_START))
    if not is_torch_file(start):
        raise ValueError(f"{path}: not a torch file")
    try:
        return _read_zip(path) if start.startswith(ZIP_START) else _read_legacy(path)
    except (pickle.UnpicklingError, zipfile.BadZipFile, EOFError, struct.error, LookupError, TypeError,
            AttributeError, OverflowError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: a damaged torch file ({error}); download or copy it again") from error


def _read_zip(path: Path) -> Any:
    file = OpenFile(path)
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        index = next((name for name in entries if name.split("/", 1)[-1] == "data.pkl"), None)
        if index is None:
            raise ValueError(f"{path}: a zip file, but not one of torch.save")
        folder = index[:-len("data.pkl")]
        if folder + "constants.pkl" in entries:
            raise ValueError(f"{path}: a TorchScript program, not weights; save the model's state dict instead")
        if folder + "byteorder" in entries and archive.read(folder + "byteorder") != b"little":
            raise ValueError(f"{path}: written on a big-endian machine; save it again on a little-endian one")
        stream = io.BytesIO(archive.read(index))

    def find_storage(tag, key, count, _):
        info = entries[f"{folder}data/{key}"]
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{path}: its tensors are compressed, which torch.save never does")
        name_length, extra_length = struct.unpack("<HH", file.read(info.header_offset + 26, 4))
        offset = info.header_offset + 30 + name_length + extra_length
        itemsize = NUMPY_TYPES[tag].itemsize if tag else 1
        if info.file_size < count * itemsize or offset + info.file_size > file.size:
            raise ValueError(f"{path}: storage {key} is cut off; download or copy the file again")
        return _Storage(tag, count, offset)

    return _place(_Unpickler(stream, path, find_storage).load(), file)


def _read_legacy(path: Path) -> Any:
    file = OpenFile(path)
    storages: dict[str, _Storage] = {}

    def find_storage(tag, key, count, view):
        storage = storages.setdefault(key, _Storage(tag, count))
        if view is None:
            return storage
        raise ValueError(f"{path}: views of storages, which PyTorch before 0.4 wrote, are not read")

    with open(path, "rb") as stream:
        def load():
            return _Unpickler(stream, path, find_storage).load()
        load()  # the magic number
        load()  # the protocol's version
        if not load().get("little_endian", True):
            raise ValueError(f"{path}: written on a big-endian machine; save it again on a little-endian one")
        content = load()
        keys = load()
        position = stream.tell()
    for key in keys:
        (count,) = struct.unpack("<q", file.read(position, 8))
        storage = storages[str(key)]
        storage.offset = position + 8
        position += 8 + count * NUMPY_TYPES[storage.tag].itemsize
        if count < storage.count or position > file.size:
            raise ValueError(f"{path}: storage {key} is cut off; download or copy the file again")
    return _place(content, file)


def _place(value: Any, file: OpenFile) -> Any:
    """The same structure with `StoredTensor`s, now that every storage's place is known."""
    if isinstance(value, _View):
        return value.stored(file)
    if isinstance(value, dict):
        return {key: _place(item, file) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_place(item, file) for item in value]
    return value
