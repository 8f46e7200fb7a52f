"""The reader of torch files: what it reads, and what it refuses."""
from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from torch_files import SAVERS, Storage, View, save_zip, tensor

from opensora.models.tensor_file import OpenFile
from opensora.models.torch_file import read_torch_file

ARRAYS = {kind: np.arange(12).reshape(3, 4).astype(kind) for kind in ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u1")}
ARRAYS["?"] = np.array([[True, False], [False, True]])


@pytest.fixture(params=list(SAVERS))
def save(request):
    return SAVERS[request.param]


def test_all_types(save, tmp_path):
    save(tmp_path / "x.pt", OrderedDict((kind, tensor(array)) for kind, array in ARRAYS.items()))
    content = read_torch_file(tmp_path / "x.pt")
    for kind, array in ARRAYS.items():
        read = content[kind].numpy()
        assert read.dtype == array.dtype and (read == array).all()
        assert b"".join(content[kind].raw()) == array.tobytes()


def test_bfloat16_becomes_float32(save, tmp_path):
    values = np.array([1.0, -2.5, 3e38, 0.0], np.float32)
    save(tmp_path / "x.pt", {"a": tensor((values.view(np.uint32) >> 16).astype(np.uint16))})
    read = read_torch_file(tmp_path / "x.pt")["a"]
    assert read.dtype == "BF16" and read.numpy().dtype == np.float32
    assert np.allclose(read.numpy(), values, rtol=1e-2)


def test_views_of_one_storage(save, tmp_path):
    elements = np.arange(24, dtype=np.float32)
    storage = Storage(elements)
    save(tmp_path / "x.pt", {"all": View(storage, (4, 6)), "transposed": View(storage, (6, 4), strides=(1, 6)),
                             "part": View(storage, (2, 3), start=7, strides=(6, 1)), "scalar": View(storage, (), 5),
                             "empty": View(storage, (0, 3)), "parameter": View(storage, (2, 12), parameter=True)})
    content = read_torch_file(tmp_path / "x.pt")
    whole = elements.reshape(4, 6)
    assert (content["all"].numpy() == whole).all()
    assert (content["transposed"].numpy() == whole.T).all()
    assert b"".join(content["transposed"].raw()) == whole.T.tobytes()
    assert (content["part"].numpy() == whole[1:3, 1:4]).all()
    assert content["scalar"].numpy() == 5 and content["scalar"].shape == ()
    assert content["empty"].numpy().shape == (0, 3)
    assert content["parameter"].numpy().shape == (2, 12)


def test_nested_content(save, tmp_path):
    save(tmp_path / "x.pt", {"epoch": 3, "lists": [1, {"w": tensor(np.ones(2, np.float32))}], "name": "x"})
    content = read_torch_file(tmp_path / "x.pt")
    assert content["epoch"] == 3 and content["name"] == "x"
    assert (content["lists"][1]["w"].numpy() == 1).all()


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


class EvilState:
    """Sets state on what an allowed name gives."""

    def __reduce__(self):
        return OrderedDict, (), {"clear": 1}


def test_a_file_that_runs_code_is_refused(save, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "evil.pt", {"w": tensor(np.ones(2, np.float32)), "x": Evil()})
    with pytest.raises(ValueError, match=r"evil.pt: names (posix|os).system"):
        read_torch_file(tmp_path / "evil.pt")
    assert not (tmp_path / "pwned").exists()


def test_state_on_an_allowed_class_stays_in_the_file(tmp_path):
    save_zip(tmp_path / "x.pt", {"x": EvilState(), "w": tensor(np.ones(2, np.float32))})
    read_torch_file(tmp_path / "x.pt")
    assert callable(OrderedDict.clear)


def write_pickle(path, data: bytes, compression=zipfile.ZIP_STORED, byteorder="little"):
    """A zip torch file with this pickle and no storages."""
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", byteorder)


def test_a_pickle_cannot_change_what_stands_for_torch(tmp_path):
    for state in (b"}X\x03\x00\x00\x00tagX\x03\x00\x00\x00F64s", b"N}X\x03\x00\x00\x00tagX\x03\x00\x00\x00F64s\x86"):
        write_pickle(tmp_path / "evil.pt", b"\x80\x02ctorch\nFloatStorage\n" + state + b"b.")
        assert read_torch_file(tmp_path / "evil.pt").name == "torch.FloatStorage", "the state is not read"
    save_zip(tmp_path / "x.pt", {"w": tensor(np.ones(2, np.float32))})
    assert read_torch_file(tmp_path / "x.pt")["w"].dtype == "F32"


@pytest.mark.parametrize("data, options, message", [
    (b"\x80\x02}.", {"byteorder": "big"}, "big-endian"),
    (b"\x80\x02}.", {"compression": zipfile.ZIP_DEFLATED}, "compressed"),
    (b"\x80\x02cposix\nsystem\nX\x0b\x00\x00\x00touch pwned\x85R.", {}, "names posix.system"),
    (b"\x80\x02cbuiltins\neval\n.", {}, "names builtins.eval"),
    (b"\x80\x02ctorch.storage\n_load_from_bytes\n.", {}, "names torch.storage._load_from_bytes"),
    (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))tR.", {}, "damaged"),  # no storage
])
def test_pickles_written_by_hand(tmp_path, monkeypatch, data, options, message):
    monkeypatch.chdir(tmp_path)
    write_pickle(tmp_path / "x.pt", data, **options)
    with pytest.raises(ValueError, match=f"x.pt: .*{message}"):
        read_torch_file(tmp_path / "x.pt")
    assert not (tmp_path / "pwned").exists()


def test_only_what_is_asked_for_is_read(save, tmp_path, monkeypatch):
    tensors = {str(i): tensor(np.full(100_000, i, np.float32)) for i in range(50)}
    save(tmp_path / "x.pt", tensors)
    read, original = [], OpenFile.read
    monkeypatch.setattr(OpenFile, "read", lambda file, offset, size: read.append(size) or original(file, offset, size))
    content = read_torch_file(tmp_path / "x.pt")
    assert sum(read) < 10_000 and len(content) == 50
    assert content["7"].numpy()[-1] == 7
    assert sum(read) < 10_000 + 400_000


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_truncated_files(save, tmp_path, keep):
    whole, cut = tmp_path / "whole.pt", tmp_path / "cut.pt"
    save(whole, {str(i): tensor(np.full(500, i, np.float32)) for i in range(50)})
    data = whole.read_bytes()
    cut.write_bytes(data[:int(len(data) * keep)])
    with pytest.raises(ValueError, match="cut.pt"):
        [value.numpy() for value in read_torch_file(cut).values()]


def test_a_tensor_outside_its_storage(save, tmp_path):
    save(tmp_path / "x.pt", {"w": View(Storage(np.ones(4, np.float32)), (5,))})
    with pytest.raises(ValueError, match="out of its storage"):
        read_torch_file(tmp_path / "x.pt")


@pytest.mark.parametrize("content", [b"", b"hello world, this is text", pickle.dumps({"a": 1}, protocol=2)])
def test_other_files(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(ValueError, match="x.pt: not a torch file"):
        read_torch_file(tmp_path / "x.pt")


def test_other_zip_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ValueError, match="not one of torch.save"):
        read_torch_file(tmp_path / "x.pt")
