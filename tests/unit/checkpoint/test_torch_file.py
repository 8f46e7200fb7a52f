"""The reader of torch files: supported content, and rejected files."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import PurePosixPath

import numpy as np
import pytest
from torch_files import SAVERS, Storage, View, refused_cheaply, save_zip, tensor

from opensora.checkpoint.files import open_state
from opensora.checkpoint.formats.torch import read_torch_file
from opensora.checkpoint.open_file import OpenFile

ARRAYS = {kind: np.arange(12).reshape(3, 4).astype(kind) for kind in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1")}
ARRAYS["?"] = np.array([[True, False], [False, True]])


@pytest.fixture(params=list(SAVERS))
def save(request):
    return SAVERS[request.param]


def test_all_types_are_read(save, tmp_path):
    save(tmp_path / "x.pt", OrderedDict((kind, tensor(array)) for kind, array in ARRAYS.items()))
    content = read_torch_file(tmp_path / "x.pt")
    for kind, array in ARRAYS.items():
        read = content[kind].numpy()
        assert read.dtype == array.dtype and (read == array).all()
        assert b"".join(content[kind].iter_bytes()) == array.tobytes()


def test_bfloat16_becomes_float32(save, tmp_path):
    values = np.array([1.0, -2.5, 3e38, 0.0], np.float32)
    save(tmp_path / "x.pt", {"a": tensor((values.view(np.uint32) >> 16).astype(np.uint16))})
    read = read_torch_file(tmp_path / "x.pt")["a"]
    assert read.dtype == "BF16" and read.numpy().dtype == np.float32
    assert np.allclose(read.numpy(), values, rtol=1e-2)


def test_views_of_one_storage_are_read(save, tmp_path):
    elements = np.arange(24, dtype=np.float32)
    storage = Storage(elements)
    save(
        tmp_path / "x.pt",
        {
            "all": View(storage, (4, 6)),
            "transposed": View(storage, (6, 4), strides=(1, 6)),
            "narrowed": View(storage, (2, 3), start=7, strides=(6, 1)),
            "scalar": View(storage, (), 5),
            "empty": View(storage, (0, 3)),
            "parameter": View(storage, (2, 12), parameter=True),
        },
    )
    content = read_torch_file(tmp_path / "x.pt")
    whole = elements.reshape(4, 6)
    assert (content["all"].numpy() == whole).all()
    assert (content["transposed"].numpy() == whole.T).all()
    assert b"".join(content["transposed"].iter_bytes()) == whole.T.tobytes()
    assert (content["narrowed"].numpy() == whole[1:3, 1:4]).all()
    assert content["scalar"].numpy() == 5 and content["scalar"].shape == ()
    assert content["empty"].numpy().shape == (0, 3)
    assert content["parameter"].numpy().shape == (2, 12)


def test_nested_content_is_read(save, tmp_path):
    save(tmp_path / "x.pt", {"epoch": 3, "lists": [1, {"w": tensor(np.ones(2, np.float32))}], "name": "x"})
    content = read_torch_file(tmp_path / "x.pt")
    assert content["epoch"] == 3 and content["name"] == "x"
    assert (content["lists"][1]["w"].numpy() == 1).all()


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


class EvilState:
    """Sets state on the result of an allowed function."""

    def __reduce__(self):
        return OrderedDict, (), {"clear": 1}


def test_file_that_runs_code_is_rejected(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "evil.pt", {"w": tensor(np.ones(2, np.float32)), "x": Evil()})
    with pytest.raises(ValueError, match=r"evil.pt: names (posix|os).system"):
        read_torch_file(tmp_path / "evil.pt")
    assert not (tmp_path / "pwned").exists()


def test_state_for_an_allowed_class_is_ignored(tmp_path):
    save_zip(tmp_path / "x.pt", {"x": EvilState(), "w": tensor(np.ones(2, np.float32))})
    read_torch_file(tmp_path / "x.pt")
    assert callable(OrderedDict.clear)


def write_pickle(path, data: bytes, compression=zipfile.ZIP_STORED, byteorder="little"):
    """A zip torch file with this pickle and no storages."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", byteorder)


def test_pickle_cannot_modify_the_reader(tmp_path):
    for state in (b"}X\x03\x00\x00\x00tagX\x03\x00\x00\x00F64s", b"N}X\x03\x00\x00\x00tagX\x03\x00\x00\x00F64s\x86"):
        write_pickle(tmp_path / "evil.pt", b"\x80\x02ctorch\nFloatStorage\n" + state + b"b.")
        assert read_torch_file(tmp_path / "evil.pt").name == "torch.FloatStorage", "the state is ignored"
    save_zip(tmp_path / "x.pt", {"w": tensor(np.ones(2, np.float32))})
    assert read_torch_file(tmp_path / "x.pt")["w"].dtype == "F32"


@pytest.mark.parametrize(
    "data, options, message",
    [
        (b"\x80\x02}.", {"byteorder": "big"}, "big-endian"),
        (b"\x80\x02}.", {"compression": zipfile.ZIP_DEFLATED}, "compressed"),
        (b"\x80\x02cposix\nsystem\nX\x0b\x00\x00\x00touch pwned\x85R.", {}, "names posix.system"),
        (b"\x80\x02cbuiltins\neval\n.", {}, "names builtins.eval"),
        (b"\x80\x02ctorch.storage\n_load_from_bytes\n.", {}, "names torch.storage._load_from_bytes"),
        (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))tR.", {}, "damaged"),  # no storage
    ],
)
def test_invalid_pickle_is_rejected(tmp_path, monkeypatch, data, options, message):
    monkeypatch.chdir(tmp_path)
    write_pickle(tmp_path / "x.pt", data, **options)
    with pytest.raises(ValueError, match=f"x.pt: .*{message}"):
        read_torch_file(tmp_path / "x.pt")
    assert not (tmp_path / "pwned").exists()


def test_tensors_are_read_on_demand(save, tmp_path, monkeypatch):
    tensors = {str(i): tensor(np.full(100_000, i, np.float32)) for i in range(50)}
    save(tmp_path / "x.pt", tensors)
    read, original = [], OpenFile.read
    monkeypatch.setattr(OpenFile, "read", lambda file, offset, size: read.append(size) or original(file, offset, size))
    content = read_torch_file(tmp_path / "x.pt")
    assert sum(read) < 10_000 and len(content) == 50
    assert content["7"].numpy()[-1] == 7
    assert sum(read) < 10_000 + 400_000


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_truncated_file_is_rejected(save, tmp_path, keep):
    whole, truncated = tmp_path / "whole.pt", tmp_path / "truncated.pt"
    save(whole, {str(i): tensor(np.full(500, i, np.float32)) for i in range(50)})
    data = whole.read_bytes()
    truncated.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ValueError, match="truncated.pt"):
        [value.numpy() for value in read_torch_file(truncated).values()]


def test_tensor_outside_its_storage_is_rejected(save, tmp_path):
    save(tmp_path / "x.pt", {"w": View(Storage(np.ones(4, np.float32)), (5,))})
    with pytest.raises(ValueError, match="exceeds its storage"):
        read_torch_file(tmp_path / "x.pt")


@pytest.mark.parametrize("content", [b"", b"hello world, this is text", pickle.dumps({"a": 1}, protocol=2)])
def test_other_file_is_rejected(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ValueError, match="x.pt: not a torch file"):
        read_torch_file(tmp_path / "x.pt")


def test_other_zip_file_is_rejected(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match="not written by torch.save"):
        read_torch_file(tmp_path / "x.pt")


# Hostile pickles, as opcodes. Strings are short and numbers below 256.
DOUBLED = b"K\x01q\x00" + b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(60))
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu%btQ"


def number(value: int) -> bytes:
    data = value.to_bytes(8, "little", signed=True)
    return b"\x8a\x08" + data


def rebuilt(shape: bytes, strides: bytes, count: int = 1, start: bytes = b"K\x00") -> bytes:
    """A tensor over a storage of `count` elements."""
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + STORAGE % number(count)
        + start
        + shape
        + strides
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def sizes(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


HOSTILE = {
    "doubled tuple as a key": b"}" + DOUBLED + b"K\x01s.",
    "doubled tuple as a persistent id": DOUBLED + b"Q.",
    "doubled tuple in a persistent id": b"(" + DOUBLED + DOUBLED + b"tQ.",
    "doubled tuple as an argument": b"ctorch._utils\n_rebuild_tensor_v2\n(" + DOUBLED + b"h\x3ch\x3ch\x3ctR.",
    "doubled tuple as items": b"ccollections\nOrderedDict\n(" + DOUBLED + b"tR.",
    "doubled tuple as a function": DOUBLED + b")R.",
    "doubled tuple as a name": b"X\x01\x00\x00\x00a" + DOUBLED + b"\x93.",
    "doubled list": b"]q\x00"
    + b"".join(b"]h" + bytes([i]) + b"ah" + bytes([i]) + b"aq" + bytes([i + 1]) for i in range(60))
    + b".",
    "memo index": b"K\x01r\xff\xff\xff\x07.",
    "memo index that was not set": b"K\x01j\xff\xff\xff\x07.",
    "huge text": b"X\xff\xff\xff\x7fabc.",
    "huge bytes": b"B\xff\xff\xff\xffabc.",
    "huge 64-bit bytes": b"\x8e" + b"\xff" * 7 + b"\x7fabc.",
    "huge bytearray": b"\x96" + b"\xff" * 7 + b"\x7fabc.",
    "huge long": b"\x8b\xff\xff\xff\x7fabc.",
    "long in text": b"L" + b"9" * 300 + b"\n.",
    "huge frame": b"\x95" + b"\xff" * 8 + b"cos\nsystem\n.",
    "extension": b"\x82\x01.",
    "another extension": b"\x84\x01\x00\x00\x00.",
    "deep lists": b"]" * 5000 + b"a" * 4999 + b"Q.",
    "deep tuples": b")" + b"\x85" * 5000 + b"Q.",
    "a list of itself": b"]q\x00h\x00ah\x00Q.",
    "endless name": b"c" + b"a" * 5000,
    "zero strides": b"}X\x01\x00\x00\x00w" + rebuilt(sizes(10**6, 10**6), sizes(0, 0)) + b"s.",
    "a zero stride": b"}X\x01\x00\x00\x00w" + rebuilt(sizes(10**12), sizes(0)) + b"s.",
    "negative stride": b"}X\x01\x00\x00\x00w" + rebuilt(sizes(1), sizes(-1)) + b"s.",
    "negative start": b"}X\x01\x00\x00\x00w" + rebuilt(sizes(1), sizes(1), start=number(-5)) + b"s.",
    "huge storage": b"}X\x01\x00\x00\x00w" + rebuilt(sizes(1 << 40), sizes(1), count=1 << 40) + b"s.",
    "negative storage": b"}X\x01\x00\x00\x00w" + rebuilt(sizes(1), sizes(1), count=-1) + b"s.",
    "empty but huge": b"}X\x01\x00\x00\x00w" + rebuilt(sizes(0, 1 << 62), sizes(1, 1)) + b"s.",
    "many axes": b"}X\x01\x00\x00\x00w" + rebuilt(sizes(*[1] * 100), sizes(*[1] * 100)) + b"s.",
    "overflowing product": b"}X\x01\x00\x00\x00w" + rebuilt(sizes(*[1 << 47] * 30), sizes(*[0] * 30)) + b"s.",
    "call of a text": b"X\x01\x00\x00\x00a)R.",
    "call of a text with state": b"X\x01\x00\x00\x00a)R}b.",
    "rebuilding that rebuilds itself": b"ctorch._tensor\n_rebuild_from_type_v2\nq\x00h\x00K\x01)\x87R.",
    "empty stack": b"0000.",
    "a mark alone": b"t.",
    "nothing": b"",
    "end of a proto": b"\x80",
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("format", list(SAVERS))
def test_hostile_pickle_is_rejected_cheaply(tmp_path, data, format):
    """Quickly and with little memory, as damaged or as a file without weights."""
    path = tmp_path / "x.pt"
    if format == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", b"\x80\x02" + data)
            archive.writestr("archive/data/0", bytes(4))
    else:
        start = b"".join(pickle.dumps(value, protocol=2) for value in (LEGACY_MAGIC, 1001, {"little_endian": True}))
        path.write_bytes(start + b"\x80\x02" + data + pickle.dumps(["0"], protocol=2) + bytes(12))
    refused_cheaply(path)


LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def test_repeated_references_take_linear_time(tmp_path):
    """Time is linear in the file length even with many references to one long list or tuple."""
    items = b"]q\x00(" + b"".join(b"X\x02\x00\x00\x00ab\x4e\x86" for _ in range(20_000)) + b"e"
    calls = b"ccollections\nOrderedDict\nq\x010" + b"h\x01h\x00\x85R0" * 20_000
    write_pickle(tmp_path / "dicts.pt", b"\x80\x02" + items + calls + b".")
    assert "no tensors" in refused_cheaply(tmp_path / "dicts.pt")
    long = b"(" + b"N" * 100_000 + b"tq\x00ctorch\nSize\nq\x010" + b"h\x01h\x00R0" * 20_000
    write_pickle(tmp_path / "sizes.pt", b"\x80\x02" + long + b".")
    assert "100000 arguments" in refused_cheaply(tmp_path / "sizes.pt")
    same_hash = [(i * (2**61 - 1) << 64).to_bytes(20, "little") for i in range(50_000)]
    keys = b"}" + b"".join(b"\x8a\x14" + key + b"Ns" for key in same_hash)
    write_pickle(tmp_path / "keys.pt", b"\x80\x02" + keys + b".")
    assert "no tensors" in refused_cheaply(tmp_path / "keys.pt")


def test_overlapping_entries_are_rejected(tmp_path):
    path = tmp_path / "x.pt"
    save_zip(path, {str(i): tensor(np.ones(2500, np.float32)) for i in range(3)})
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        first, second = (archive.getinfo(f"archive/data/{i}").header_offset for i in (0, 1))
    at = data.rindex(second.to_bytes(4, "little"))  # in the central directory
    data[at : at + 4] = first.to_bytes(4, "little")
    path.write_bytes(data)
    assert "damaged torch file" in refused_cheaply(path)


def test_entry_larger_than_the_file_is_rejected(tmp_path):
    path = tmp_path / "x.pt"
    write_pickle(path, b"\x80\x02}.")
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02", 0, data.rindex(b"data.pkl"))
    data[at + 20 : at + 28] = (1 << 30).to_bytes(4, "little") * 2
    path.write_bytes(data)
    refused_cheaply(path)


def test_other_objects_are_ignored(save, tmp_path):
    """Checkpoints of Lightning and DeepSpeed hold objects of other classes besides the weights."""
    path = tmp_path / "x.pt"
    save(
        path,
        {
            "state_dict": {"w": tensor(np.ones(2, np.float32))},
            "hyper_parameters": argparse.Namespace(lr=0.1),
            "callbacks": {("a", 1): {"best": PurePosixPath("a/b")}},
            "seen": {1, 2},
            "loops": defaultdict(int, a=1),
            "random": (3, tuple(range(625)), None),
            "big": 2**127,
            "numpy": np.random.RandomState(0).get_state(),
            "bytes": b"abc",
            "complex": 1j,
            "infinity": float("inf"),
        },
    )
    content = read_torch_file(path)
    assert content["hyper_parameters"].name == "argparse.Namespace" and content["big"] == 2**127
    assert content["random"][1][-1] == 624 and content["infinity"] == float("inf")
    assert open_state(path)["w"].numpy().tolist() == [1, 1]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_is_read(tmp_path, protocol):
    content = {
        "a": [1, -2, 300, 2**40, -(2**70), 0.5, None, True, "ä" * 300, b"x" * 300, (), (1,), (1, 2, 3, 4), []],
        "same": ["x"] * 1500,
        "many": list(range(3000)),
    }
    write_pickle(tmp_path / "x.pt", pickle.dumps(content, protocol=protocol))
    read = read_torch_file(tmp_path / "x.pt")
    if protocol == 2:  # writes bytes as a function call
        content["a"][9] = read["a"][9]
    assert read == content


def test_expanded_tensor_is_read(save, tmp_path):
    """A small one, as torch.expand makes it."""
    save(tmp_path / "x.pt", {"w": View(Storage(np.full(3, 2, np.float32)), (50, 3), strides=(0, 1))})
    assert (read_torch_file(tmp_path / "x.pt")["w"].numpy() == np.full((50, 3), 2)).all()


def test_object_instead_of_weights_is_rejected(tmp_path):
    save_zip(tmp_path / "x.pt", argparse.Namespace(a=1))
    assert "an object of argparse.Namespace, not weights" in refused_cheaply(tmp_path / "x.pt")


def test_float8_becomes_float32(tmp_path):
    """Every value of both types, against their definition; a tensor of an unsupported type is named."""
    data = (
        b"\x80\x02}("
        + b"".join(
            b"X\x01\x00\x00\x00" + name + b"ctorch._utils\n_rebuild_tensor_v3\n("
            b"(X\x07\x00\x00\x00storagectorch.storage\nUntypedStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuM\x00\x01tQ"
            b"K\x00M\x00\x01\x85K\x01\x85\x89ccollections\nOrderedDict\n)Rctorch\n" + kind + b"\ntR"
            for name, kind in ((b"a", b"float8_e4m3fn"), (b"b", b"float8_e5m2"), (b"c", b"float8_e8m0fnu"))
        )
        + b"u."
    )
    for pickled, read in ((data, False), (data.replace(b"float8_e8m0fnu", b"uint8"), True)):
        with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
            archive.writestr("archive/data/0", bytes(range(256)))
        if not read:
            assert "'c' is a tensor of torch.float8_e8m0fnu" in refused_cheaply(tmp_path / "x.pt")
    state = open_state(tmp_path / "x.pt")

    def value(bits: int, exponent_bits: int, mantissa_bits: int) -> float:
        exponent, mantissa = bits >> mantissa_bits & (1 << exponent_bits) - 1, bits & (1 << mantissa_bits) - 1
        bias = (1 << exponent_bits - 1) - 1
        fraction = mantissa / (1 << mantissa_bits)
        size = fraction * 2.0 ** (1 - bias) if exponent == 0 else (1 + fraction) * 2.0 ** (exponent - bias)
        return -size if bits >> 7 else size

    e4m3, e5m2 = state["a"].numpy(), state["b"].numpy()
    assert e4m3.dtype == e5m2.dtype == np.float32
    for bits in range(256):
        if bits & 127 == 127:
            assert np.isnan(e4m3[bits])
        else:
            assert e4m3[bits] == value(bits, 4, 3)
        if bits & 127 < 124:
            assert e5m2[bits] == value(bits, 5, 2)
    assert np.isinf(e5m2[[124, 252]]).all() and np.isnan(e5m2[[125, 126, 127, 253, 254, 255]]).all()
