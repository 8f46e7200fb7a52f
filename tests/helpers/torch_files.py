"""Writes files in both formats of torch.save without torch, and checks how readers reject files."""

from __future__ import annotations

import io
import pickle
import struct
import time
import tracemalloc
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
import pytest

from opensora.checkpoint.files import open_state

STORAGES = {
    np.dtype("f8"): "DoubleStorage",
    np.dtype("f4"): "FloatStorage",
    np.dtype("f2"): "HalfStorage",
    np.dtype("u2"): "BFloat16Storage",
    np.dtype("i8"): "LongStorage",
    np.dtype("i4"): "IntStorage",
    np.dtype("i2"): "ShortStorage",
    np.dtype("i1"): "CharStorage",
    np.dtype("u1"): "ByteStorage",
    np.dtype("?"): "BoolStorage",
}


class Storage:
    """Consecutive elements, which several tensors may view."""

    def __init__(self, elements: np.ndarray):
        self.elements = elements


class View:
    """A tensor that views a storage. `parameter` wraps it as torch wraps a Parameter."""

    def __init__(
        self, storage: Storage, shape, start: int = 0, strides: Optional[tuple] = None, parameter: bool = False
    ):
        self.storage, self.shape, self.start, self.parameter = storage, tuple(shape), start, parameter
        self.strides = strides or tuple(int(np.prod(shape[i + 1 :])) for i in range(len(shape)))


def tensor(array: np.ndarray) -> View:
    """A contiguous tensor; uint16 arrays are the bits of bfloat16."""
    return View(Storage(array.reshape(-1)), array.shape)


class Name:
    """A reference to a function or class of torch, which need not be installed."""

    def __init__(self, module: str, name: str):
        self.line = f"c{module}\n{name}\n".encode()

    def __call__(self):
        raise AssertionError("this is only pickled, never called")


class _Pickler(pickle._Pickler):
    def __init__(self, stream, legacy: bool):
        super().__init__(stream, protocol=2)
        self.legacy = legacy
        self.storages: list[Storage] = []

    def persistent_id(self, value):
        if not isinstance(value, Storage):
            return None
        if value not in self.storages:
            self.storages.append(value)
        kind = Name("torch", STORAGES[value.elements.dtype])
        view = (None,) if self.legacy else ()
        return ("storage", kind, str(self.storages.index(value)), "cpu", value.elements.size) + view

    def save(self, value, save_persistent_id=True):
        if isinstance(value, Name):
            self.write(value.line)
        elif isinstance(value, View) and value.parameter:
            plain = View(value.storage, value.shape, value.start, value.strides)
            self.save_reduce(Name("torch._utils", "_rebuild_parameter"), (plain, True, OrderedDict()), obj=value)
        elif isinstance(value, View):
            arguments = (value.storage, value.start, value.shape, value.strides, False, OrderedDict())
            self.save_reduce(Name("torch._utils", "_rebuild_tensor_v2"), arguments, obj=value)
        else:
            super().save(value, save_persistent_id)


def _pickle(content: Any, legacy: bool) -> tuple[bytes, list[Storage]]:
    stream = io.BytesIO()
    pickler = _Pickler(stream, legacy)
    pickler.dump(content)
    return stream.getvalue(), pickler.storages


def save_zip(path: Path, content: Any) -> None:
    data, storages = _pickle(content, legacy=False)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", "little")
        for i, storage in enumerate(storages):
            archive.writestr(f"archive/data/{i}", storage.elements.tobytes())
        archive.writestr("archive/version", "3\n")


def save_legacy(path: Path, content: Any) -> None:
    data, storages = _pickle(content, legacy=True)
    with open(path, "wb") as file:
        for header in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}):
            pickle.dump(header, file, protocol=2)
        file.write(data)
        pickle.dump([str(i) for i in range(len(storages))], file, protocol=2)
        for storage in storages:
            file.write(struct.pack("<q", storage.elements.size) + storage.elements.tobytes())


SAVERS = {"zip": save_zip, "legacy": save_legacy}


def as_tensors(state: dict) -> dict:
    """Arrays by name as torch tensors."""
    return {name: tensor(np.ascontiguousarray(value)) for name, value in state.items()}


def same(a: dict, b: dict) -> bool:
    """Whether two state dicts of arrays are equal."""
    return set(a) == set(b) and all((a[name] == b[name]).all() for name in a)


def refused_cheaply(path: Path, megabytes: float = 20, read: Callable[[Path], Any] = open_state) -> str:
    """The error message for a file: one short line, raised within seconds and with little memory."""
    tracemalloc.start()
    start = time.process_time()
    try:
        with pytest.raises(ValueError) as caught:
            [(value.numpy(), list(value.iter_bytes())) for value in read(path).values()]
        assert time.process_time() - start < 5
        assert tracemalloc.get_traced_memory()[1] < megabytes * 1e6
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert path.name in message and "\n" not in message and len(message) < 1000
    return message
