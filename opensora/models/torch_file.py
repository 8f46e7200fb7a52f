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
from operator import index
from pathlib import Path
from typing import Any, BinaryIO, Callable, NamedTuple, Optional, Union

from opensora.models.tensor_file import NUMPY_TYPES, OpenFile, StoredTensor, contiguous_strides, cut_off

LEGACY_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
ZIP_START = b"PK\x03\x04"

STORAGE_TYPES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}


class _Type(NamedTuple):
    """Stands for a type of torch. `tag` is its name in safetensors (None: none, as of bytes of any type).

    Being a tuple, like all that stands for torch here, it cannot be changed by what a pickle says.
    """

    tag: Optional[str] = None

    @property
    def itemsize(self) -> int:
        return NUMPY_TYPES[self.tag].itemsize if self.tag else 1


class _Storage(NamedTuple):
    """A run of `count` elements in the file, from byte `offset` on."""

    file: OpenFile
    offset: int
    count: int
    type: _Type


def _rebuild_tensor(storage, start, shape, strides, *_):
    return _tensor(storage, start, shape, strides, storage.type)


def _rebuild_tensor_v3(storage, start, shape, strides, requires_grad, hooks, dtype, *_):
    return _tensor(storage, start, shape, strides, dtype)


def _tensor(storage: _Storage, start: int, shape: tuple, strides: tuple, dtype: _Type) -> StoredTensor:
    size = NUMPY_TYPES[dtype.tag].itemsize
    start, shape, strides = index(start), tuple(map(index, shape)), tuple(map(index, strides))
    last = start + sum((n - 1) * stride for n, stride in zip(shape, strides))
    room = storage.count * storage.type.itemsize // size
    if len(shape) != len(strides) or min(start, 0, *shape, *strides) < 0 or (0 not in shape and last >= room):
        raise pickle.UnpicklingError("a tensor reaches out of its storage")
    return StoredTensor(storage.file, storage.offset + start * size, shape, dtype.tag,
                        None if strides == contiguous_strides(shape) else strides)


def _rebuild_parameter(tensor, *_):
    return tensor


def _rebuild_from_type(rebuild, kind, arguments, *_):
    return rebuild(*arguments)


def _nothing(*_):
    return None


ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _rebuild_from_type,
    ("torch", "Size"): tuple,
    ("torch", "device"): _nothing,
    **{name: _Type() for name in (("torch", "Tensor"), ("torch.nn.parameter", "Parameter"),
                                  ("torch", "UntypedStorage"), ("torch.storage", "UntypedStorage"))},
    **{("torch", name): _Type(tag) for name, tag in {**STORAGE_TYPES, **DTYPES}.items()},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: BinaryIO, path: Path, find_storage: Callable[[str, int, _Type], _Storage]):
        super().__init__(stream, encoding="utf-8")
        self.path, self.find_storage = path, find_storage

    def find_class(self, module: str, name: str):
        if (module, name) not in ALLOWED:
            raise ValueError(f"{self.path}: names {module}.{name}, which is not part of a tensor; refused, since "
                             f"running it could do anything. Save a plain state dict, or use safetensors")
        return ALLOWED[module, name]

    def persistent_load(self, pid):
        kind, storage_type, key, _, count, *view = pid
        if kind != "storage" or view not in ([], [None]):  # views: PyTorch before 0.4
            raise pickle.UnpicklingError(f"unknown reference {pid!r:.60}")
        return self.find_storage(str(key), index(count), storage_type)


def is_torch_file(start: bytes) -> bool:
    """Whether a file with these first bytes is one of torch.save."""
    return start.startswith((ZIP_START, LEGACY_START))


def read_torch_file(path: Union[str, Path]) -> Any:
    """What torch.save was given: dicts, lists and numbers, with a `StoredTensor` for every tensor.

    Raises:
        ValueError: a damaged file, or one that names anything but tensors.
    """
    path = Path(path)
    file = OpenFile(path)
    start = bytes(file.read(0, min(file.size, len(LEGACY_START))))
    if not is_torch_file(start):
        raise ValueError(f"{path}: not a torch file")
    try:
        return _read_zip(file) if start.startswith(ZIP_START) else _read_legacy(file)
    except Exception as error:  # damaged pickles and archives raise whatever they happen to hit
        if isinstance(error, ValueError) and str(error).startswith(f"{path}: "):
            raise
        raise ValueError(f"{path}: a damaged torch file ({error}); download or copy it again") from error


def _read_zip(file: OpenFile) -> Any:
    path = file.path
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        content = next((name for name in entries if name.split("/", 1)[-1] == "data.pkl"), None)
        if content is None:
            raise ValueError(f"{path}: a zip file, but not one of torch.save")
        folder = content[:-len("data.pkl")]
        if folder + "constants.pkl" in entries:
            raise ValueError(f"{path}: a TorchScript program, not weights; save the model's state dict instead")
        if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
            raise ValueError(f"{path}: a compressed zip file, which torch.save never writes")
        if folder + "byteorder" in entries:
            _check_byte_order(path, archive.read(folder + "byteorder") == b"little")
        stream = io.BytesIO(archive.read(content))

    def find_storage(key: str, count: int, storage_type: _Type) -> _Storage:
        info = entries[f"{folder}data/{key}"]
        name_length, extra_length = struct.unpack("<HH", file.read(info.header_offset + 26, 4))
        offset = info.header_offset + 30 + name_length + extra_length
        if info.file_size < count * storage_type.itemsize or offset + info.file_size > file.size:
            raise cut_off(path, f"storage {key}")
        return _Storage(file, offset, count, storage_type)

    return _Unpickler(stream, path, find_storage).load()


def _read_legacy(file: OpenFile) -> Any:
    path = file.path
    storages: dict[str, _Storage] = {}

    def note_storage(key: str, count: int, storage_type: _Type) -> _Storage:
        return storages.setdefault(key, _Storage(file, 0, count, storage_type))

    def placed_storage(key: str, count: int, storage_type: _Type) -> _Storage:
        return storages[key]

    with open(path, "rb") as stream:
        def load(find_storage=note_storage):
            return _Unpickler(stream, path, find_storage).load()

        load()  # the magic number
        load()  # the protocol's version
        _check_byte_order(path, load()["little_endian"])
        content_start = stream.tell()
        load()  # only to learn which storages there are: their bytes follow at the end, in the order of `keys`
        keys = load()
        position = stream.tell()
        for key in map(str, keys):
            storage = storages[key]
            (count,) = struct.unpack("<q", file.read(position, 8))
            if count < storage.count or position + 8 + count * storage.type.itemsize > file.size:
                raise cut_off(path, f"storage {key}")
            storages[key] = storage._replace(offset=position + 8)
            position += 8 + count * storage.type.itemsize
        if len(keys) < len(storages):
            raise pickle.UnpicklingError("storages without a place")
        stream.seek(content_start)
        return load(placed_storage)


def _check_byte_order(path: Path, is_little: bool) -> None:
    if not is_little:
        raise ValueError(f"{path}: written on a big-endian machine; save it again on a little-endian one")
