"""Reading and writing of safetensors files."""

from __future__ import annotations

import json
import os
import resource

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file
from torch_files import refused_cheaply

from opensora.checkpoint.element_types import NUMPY_TYPES, is_finite, is_finite_chunk
from opensora.checkpoint.formats.safetensors import read_metadata, read_safetensors, write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor


@pytest.mark.parametrize(
    "header",
    [
        b'{"w": {"dtype": "F32", "shape": [-1, -2], "data_offsets": [0, 8]}}',
        b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}}',
        b'{"w": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}',
        b'{"w": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}}',
        b'{"w": 3}',
        b"{nonsense",
    ],
)
def test_damaged_header_is_rejected(tmp_path, header):
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ValueError, match="x.safetensors: "):
        read_safetensors(path)


def test_disk_that_fills_up_while_writing_is_reported(tmp_path, monkeypatch):
    """Some network file systems cannot reserve space in advance."""
    monkeypatch.delattr(os, "posix_fallocate")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        with pytest.raises(OSError, match="x.safetensors: cannot hold 0.002 GB"):
            write_safetensors(tmp_path / "x.safetensors", {"w": ArrayTensor(np.zeros(500_000, np.float32))})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("keep", [4, 40, 0.5, 0.99])
def test_truncated_file_is_rejected(tmp_path, keep):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {str(i): ArrayTensor(np.ones(100, np.float32)) for i in range(5)})
    data = path.read_bytes()
    path.write_bytes(data[: keep if keep > 1 else int(len(data) * keep)])
    with pytest.raises(ValueError, match="x.safetensors"):
        read_safetensors(path)


def entry(begin: int, end: int, **changes) -> dict:
    return {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end], **changes}


SAFETENSORS_HEADERS = [
    json.dumps(header)
    for header in (
        {"a": entry(0, 32)},
        {"b": entry(16, 32), "a": entry(0, 16)},
        {"z": entry(0, 0), "a": entry(0, 32)},
        {"a": entry(0, 32), "__metadata__": {"format": "pt"}},
        {"a": entry(0, 32), "__metadata__": None},
        {"a": entry(0, 32, more=1)},
        {"a": entry(0, 16), "b": entry(0, 32)},
        {"a": entry(0, 32), "b": entry(0, 32)},
        {"a": entry(0, 8), "b": entry(16, 32)},
        {"a": entry(4, 32)},
        {"a": entry(0, 16)},
        {"a": entry(0, 36)},
        {"a": entry(0, 32, shape=[7])},
        {"a": entry(0, 32, shape=[8.0])},
        {"a": entry(0, 32, shape=[True, 8])},
        {"a": entry(0, 32, shape=[-8])},
        {"a": entry(0, 32, shape=[1 << 40, 1 << 40])},
        {"a": entry(0, 32, dtype="f32")},
        {"a": entry(0, 32, dtype="I64")},
        {"a": entry(0, 32, data_offsets=[0, 32, 32])},
        {"a": entry(0, 32, shape=None)},
        {"a": entry(0, 32, data_offsets=[32, 0])},
        {"a": entry(0, 32), "__metadata__": {"format": 3}},
        {"a": entry(0, 32), "__metadata__": []},
        [entry(0, 32)],
    )
] + [
    '{"a": NaN}',
    json.dumps({"a": entry(0, 32)}) + "   ",
    json.dumps({"a": entry(0, 32)}) + "x",
    json.dumps({"a": entry(0, 32)}).replace("32", "3.2e1"),
    json.dumps({"\ud800": entry(0, 32)}),
]


@pytest.mark.parametrize("header", SAFETENSORS_HEADERS)
def test_header_is_rejected_like_by_the_reference(tmp_path, header):
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(32))
    try:
        expected = load_file(path)
    except SafetensorError:
        refused_cheaply(path)
    else:
        assert set(read_safetensors(path)) == set(expected)


def write_header(path, header: str, content: bytes = bytes(32)):
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + content)


def test_hostile_header_is_rejected_cheaply(tmp_path):
    path = tmp_path / "x.safetensors"
    one = json.dumps(entry(0, 32))
    for header, message in (
        (f'{{"a": {one}, "a": {one}}}', "'a' comes twice"),
        ('{"a":' + "[" * 200_000, "nested too deep"),
        (json.dumps({"a": entry(0, 32, shape=[1] * 150_000)}), "150000 axes"),
        (json.dumps({"a": entry(0, 32, shape=[10**18] * 30)}), "an invalid shape"),
        ('{"a": ' + "9" * 100_000 + "}", "100000 digits"),
        ('{"a":' * 200_000, "nested too deep"),
        (json.dumps({"a": entry(0, 32, dtype="F8_E8M0", shape=[32])}), "'a' has the unsupported type F8_E8M0"),
        (json.dumps({"a": entry(0, 32, dtype="C64", shape=[4])}), "'a' has the unsupported type C64"),
    ):
        write_header(path, header)
        assert message in refused_cheaply(path)
    path.write_bytes(b"\xff" * 7 + b"\x7f" + b"{}")
    assert "not a safetensors file" in refused_cheaply(path)


@pytest.mark.parametrize(
    "kind, bad",
    [
        ("F32", np.float32("nan")),
        ("F16", np.float16("inf")),
        ("F64", -np.inf),
        ("BF16", np.uint16(0x7F80)),
        ("F8_E4M3", np.uint8(0xFF)),
        ("F8_E5M2", np.uint8(0x7C)),
    ],
)
def test_non_finite_values_are_detected_in_every_type(kind, bad):
    values = np.zeros(1000, NUMPY_TYPES[kind])
    assert is_finite_chunk(values.tobytes(), kind)
    values[-1] = bad
    assert not is_finite_chunk(values.tobytes(), kind)
    assert is_finite(np.full(1000, 3e38, np.float32)), "finite values with an infinite sum"


def test_metadata_are_those_of_the_reference(tmp_path):
    path, metadata = tmp_path / "x.safetensors", {"lora": '{"r": 2}', "ü": "\n"}
    write_safetensors(path, {"w": ArrayTensor(np.zeros(3, np.float32))}, metadata=metadata)
    with safe_open(path, "np") as file:
        assert file.metadata() == read_metadata(path) == {**metadata, "format": "pt"}
    write_header(path, json.dumps({"a": entry(0, 32)}))
    assert read_metadata(path) == {} and set(read_safetensors(path)) == {"a"}
    write_header(path, json.dumps({"a": entry(0, 32), "__metadata__": {"format": 3}}))
    with pytest.raises(ValueError, match="x.safetensors: a damaged safetensors header"):
        read_metadata(path)
