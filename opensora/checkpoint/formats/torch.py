"""Reads files of torch.save, without torch and without executing anything in them.

A torch file is a pickle and the bytes of its tensors, either in a zip archive (PyTorch 1.6 and later) or as the legacy
sequence of pickles. `torch_pickle` reads the pickle; tensors are read from the file on demand.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, Callable, NamedTuple, Union

from opensora.checkpoint.element_types import NUMPY_TYPES, element_count
from opensora.checkpoint.formats.torch_pickle import SCRIPT_TYPES, Foreign, Harmful, ScriptObject, call, read_pickle
from opensora.checkpoint.lazy_tensor import FileTensor, contiguous_strides
from opensora.checkpoint.open_file import OpenFile, ScatteredFile, truncated
from opensora.errors import UserError

LEGACY_START = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
ZIP_START = b"PK\x03\x04"
LOCAL_HEADER = 30  # bytes before an entry's name
LONGEST_PICKLE = 128 << 20  # bytes; 100,000 tensors take 15 MB
FIRST_READ = 8 << 10  # bytes of a legacy file that are read first for its pickles; more if they do not suffice
DEEPEST_MODULE = 100  # levels of the modules of a TorchScript program
SMALL_VIEW = 1 << 20  # bytes up to which an expanded tensor may be larger than its storage

STORAGE_TYPES = {
    "torch.DoubleStorage": "F64",
    "torch.FloatStorage": "F32",
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    "torch.LongStorage": "I64",
    "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16",
    "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8",
    "torch.BoolStorage": "BOOL",
    "torch.UntypedStorage": "U8",
    "torch.storage.UntypedStorage": "U8",
}
DTYPES = {
    "torch.float64": "F64",
    "torch.float32": "F32",
    "torch.float16": "F16",
    "torch.bfloat16": "BF16",
    "torch.int64": "I64",
    "torch.int32": "I32",
    "torch.int16": "I16",
    "torch.int8": "I8",
    "torch.uint64": "U64",
    "torch.uint32": "U32",
    "torch.uint16": "U16",
    "torch.uint8": "U8",
    "torch.bool": "BOOL",
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
}
UNSUPPORTED_TENSOR = "tensor of "  # prefix of the name of a `Foreign` that replaces a tensor of unsupported type


class _Storage(NamedTuple):
    """`numel` consecutive elements of type `tag` in the file, at byte `offset`."""

    file: Union[OpenFile, ScatteredFile]
    offset: int
    numel: int
    tag: str


def _rebuild_tensor(storage, start, shape, strides, *_):
    return storage if type(storage) is Foreign else _tensor(storage, start, shape, strides, storage.tag)


def _rebuild_tensor_v3(storage, start, shape, strides, requires_grad, hooks, dtype, *_):
    if dtype.name not in DTYPES:
        return Foreign(UNSUPPORTED_TENSOR + dtype.name)
    return storage if type(storage) is Foreign else _tensor(storage, start, shape, strides, DTYPES[dtype.name])


def _tensor(storage: _Storage, start: int, shape: tuple, strides: tuple, tag: str) -> FileTensor:
    size = NUMPY_TYPES[tag].itemsize
    count = span = element_count(shape)
    is_contiguous = strides == contiguous_strides(shape)
    if not is_contiguous:
        if len(strides) != len(shape) or any(type(stride) is not int or stride < 0 for stride in strides):
            raise UserError(f"a tensor of shape {shape} has invalid strides")
        span = 1 + sum((n - 1) * stride for n, stride in zip(shape, strides))
    nbytes = storage.numel * NUMPY_TYPES[storage.tag].itemsize
    if type(start) is not int or start < 0 or count and start + span > nbytes // size:
        raise UserError("a tensor exceeds its storage")
    if count * size > max(nbytes, SMALL_VIEW):
        raise UserError(f"a tensor of shape {shape} expands a storage of {nbytes} bytes too far")
    return FileTensor(storage.file, storage.offset + start * size, shape, tag, None if is_contiguous else strides)


def _rebuild_from_type(rebuild, kind, arguments, *_):
    return call(FUNCTIONS, rebuild, arguments)


def _ordered_dict(items=None):
    if items is None:
        return {}
    if type(items) is not list:  # in files of Python 2: a list of pairs
        raise TypeError("an OrderedDict that is not built from a list")
    content = {key: value for key, value in items if type(key) is str}
    items.clear()  # or many references to one long list would take quadratic time
    return content


def _first(value, *_):
    return value


FUNCTIONS: dict[str, Callable] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": lambda *_: {},
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _first,
    **dict.fromkeys(SCRIPT_TYPES, _first),
}


def is_torch_file(start: bytes) -> bool:
    """Whether a file with these first bytes was written by torch.save."""
    return start.startswith((ZIP_START, LEGACY_START))


def read_torch_file(path: Union[str, Path]) -> Any:
    """The content of a torch file: dicts, lists, tuples, strings and numbers, with a `FileTensor` for every tensor.

    OrderedDicts become dicts, and a TorchScript program its state dict. Objects of other classes become
    `torch_pickle.Foreign`, without content. Time and memory
    are bounded by the file's length, not by sizes that the file claims.

    Raises:
        UserError: a damaged file, or one that names functions which run commands or open files.
    """
    path = Path(path)
    file = OpenFile(path)
    start = bytes(file.read(0, min(file.size, len(LEGACY_START))))
    if not is_torch_file(start):
        raise UserError(f"{path}: not a torch file")
    try:
        return _read_zip(file) if start.startswith(ZIP_START) else _read_legacy(file)
    except Harmful as error:
        raise UserError(
            f"{path}: names {error}, which no tensor needs and which could run any code, so the file is rejected; "
            f"save a plain state dict, or use safetensors"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # damaged pickles and archives raise many kinds of errors
        if isinstance(error, ValueError) and str(error).startswith(f"{path}: "):
            raise
        raise UserError(f"{path}: a damaged torch file ({error!s:.200}); download or copy it again") from error


def _read_zip(file: OpenFile) -> Any:
    path = file.path
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        if len(entries) < len(archive.infolist()):
            raise UserError("two entries have the same name")
    content = next((name for name in entries if name.split("/", 1)[-1] == "data.pkl"), None)
    if content is None:
        raise UserError(f"{path}: a zip file, but not written by torch.save")
    folder = content[: -len("data.pkl")]
    if any(info.compress_type != zipfile.ZIP_STORED for info in entries.values()):
        raise UserError(f"{path}: a compressed zip file, which torch.save never writes")
    _check_places(file, entries.values())

    def place(name: str) -> int:
        """The offset of an entry's content."""
        info = entries[name]
        signature, name_length, extra_length = struct.unpack("<4s22xHH", file.read(info.header_offset, LOCAL_HEADER))
        if signature != ZIP_START:
            raise UserError(f"no entry {name:.80} at its offset")
        offset = info.header_offset + LOCAL_HEADER + name_length + extra_length
        if offset + info.file_size > file.size:
            raise truncated(path, f"storage {name.split('/')[-1]:.80}")
        return offset

    def read(name: str) -> bytes:
        info = entries[name]
        if info.file_size > LONGEST_PICKLE:
            raise UserError(f"{name:.80} has {info.file_size} bytes, more than {LONGEST_PICKLE}")
        data = bytes(file.read(place(name), info.file_size))
        if info.CRC and zlib.crc32(data) != info.CRC:
            raise UserError(f"wrong checksum of {name:.80}")
        return data

    if folder + "byteorder" in entries:
        _check_byte_order(path, read(folder + "byteorder") == b"little")

    def find_storage(key: str, numel: int, tag: str) -> _Storage:
        name = f"{folder}data/{key}"
        if entries[name].file_size < numel * NUMPY_TYPES[tag].itemsize:
            raise truncated(path, f"storage {key:.80}")
        return _Storage(file, place(name), numel, tag)

    found = read_pickle(read(content), 0, FUNCTIONS, _storage_finder(find_storage))[0]
    return _script_state(found) if type(found) is ScriptObject else found


def _script_state(program: ScriptObject) -> dict[str, Any]:
    """The state dict of a TorchScript program (torch.jit.save): its tensors by the paths to them."""
    state: dict[str, Any] = {}
    pending, seen = [("", program)], {id(program)}
    while pending:
        prefix, module = pending.pop()
        if prefix.count(".") > DEEPEST_MODULE:
            raise UserError(f"modules are nested deeper than {DEEPEST_MODULE} levels")
        submodules = []
        for name, value in module.attributes.items():
            if type(value) is FileTensor:
                state[f"{prefix}{name}"] = value
            elif type(value) is ScriptObject and id(value) not in seen:
                seen.add(id(value))
                submodules.append((f"{prefix}{name}.", value))
        pending += reversed(submodules)  # in the order of their definition
    return state


def _check_places(file: OpenFile, entries) -> None:
    """Raises UserError for overlapping entries, with which a small file could claim any amount of data."""
    end = 0
    for start, size in sorted((info.header_offset, info.file_size) for info in entries):
        if start < end:
            raise UserError("entries overlap")
        end = start + LOCAL_HEADER + size
    if end > file.size:
        raise truncated(file.path)


def _storage_finder(find_storage: Callable[[str, int, str], _Storage]) -> Callable:
    """A reader of persistent ids ("storage", type, key, device, number of elements)."""

    def persistent(pid):
        kind, *rest = pid if type(pid) is tuple and pid else (None,)
        if kind == "module":  # a class, with its source, in an old file of a whole model
            return rest[0] if rest and type(rest[0]) is Foreign else Foreign("module")
        if kind != "storage" or len(rest) not in (4, 5) or rest[4:] not in ([], [None]):  # PyTorch < 0.4 had views
            raise UserError("an unknown kind of reference")
        storage_type, key, _, numel = rest[:4]
        if type(storage_type) is not Foreign or type(key) is not str or type(numel) is not int or numel < 0:
            raise TypeError("an invalid reference to a storage")
        if storage_type.name not in STORAGE_TYPES:
            return Foreign(UNSUPPORTED_TENSOR + storage_type.name)
        return find_storage(key, numel, STORAGE_TYPES[storage_type.name])

    return persistent


def _read_legacy(file: OpenFile) -> Any:
    """Reads the pickles from growing prefixes of the file, because their length is not known in advance."""
    size = FIRST_READ
    while True:
        data = bytes(file.read(0, min(size, file.size)))
        try:
            return _read_legacy_start(file, data)
        except (LookupError, struct.error):
            if size >= min(file.size, LONGEST_PICKLE):
                raise
        size *= 16


def _read_legacy_start(file: OpenFile, data: bytes) -> Any:
    """Reads the pickles in `data`, a prefix of the file; storages follow in the order of the last pickle's keys."""
    storages: dict[str, _Storage] = {}

    places: dict[str, list[tuple[int, int]]] = {}  # of each storage, filled in when its offset is known

    def find_storage(key: str, numel: int, tag: str) -> _Storage:
        if key not in storages:
            storages[key] = _Storage(ScatteredFile(file, places.setdefault(key, [])), 0, numel, tag)
        return storages[key]

    _, position = read_pickle(data, len(LEGACY_START), {}, _first)  # the protocol's version
    system, position = read_pickle(data, position, {}, _first)
    _check_byte_order(file.path, system["little_endian"])
    content, position = read_pickle(data, position, FUNCTIONS, _storage_finder(find_storage))
    keys, position = read_pickle(data, position, {}, _first)
    for key in keys:
        storage = storages.pop(key)
        (count,) = struct.unpack("<q", file.read(position, 8))
        position += 8
        nbytes = count * NUMPY_TYPES[storage.tag].itemsize
        if count < storage.numel or position + nbytes > file.size:
            raise truncated(file.path, f"storage {key:.80}")
        places[key].append((position, nbytes))
        position += nbytes
    if storages:
        raise UserError("storages are missing")
    return content


def _check_byte_order(path: Path, is_little: bool) -> None:
    if not is_little:
        raise UserError(f"{path}: written on a big-endian machine; save it again on a little-endian one")
