"""Reading of MindSpore checkpoints."""

from __future__ import annotations

import re

import mindspore as ms
import numpy as np
import pytest
from torch_files import refused_cheaply

from opensora.checkpoint.files import open_state


@pytest.mark.parametrize("dtype", [ms.float32, ms.float16, ms.bfloat16, ms.int64, ms.bool_])
def test_all_types_are_read(tmp_path, dtype):
    values = ms.Tensor(np.arange(6).reshape(2, 3)).astype(dtype)
    ms.save_checkpoint(
        [{"name": "w", "data": values}, {"name": "b", "data": ms.Tensor(3.0, ms.float32)}],
        str(tmp_path / "x.ckpt"),
        append_dict={"note": "a string"},
    )
    state = open_state(tmp_path / "x.ckpt")
    expected = values.astype(ms.float32).asnumpy()
    assert set(state) == {"w", "b"} and state["w"].shape == (2, 3)
    assert (state["w"].numpy().astype(np.float32) == expected).all() and state["b"].numpy() == 3


def test_slices_are_concatenated_and_truncation_is_rejected(tmp_path, monkeypatch):
    """MindSpore splits tensors over 512 MB into slices; here into slices of 1 KB."""
    path = tmp_path / "x.ckpt"
    monkeypatch.setattr("mindspore.train.serialization.SLICE_SIZE", 1)
    array = np.random.RandomState(0).standard_normal((40, 25)).astype(np.float32)
    tensors = [{"name": "w", "data": ms.Tensor(array)}, {"name": "b", "data": ms.Tensor(array[0])}]
    ms.save_checkpoint(tensors, str(path), crc_check=True)
    assert path.read_bytes().count(b"Float32") == 5, "four slices and one unsplit tensor"
    state = open_state(path)
    assert (state["w"].numpy() == array).all() and (state["b"].numpy() == array[0]).all()
    assert b"".join(state["w"].iter_bytes()) == array.tobytes()
    data = path.read_bytes()
    for size in (10, 1000, 3000, 4200):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError, match="x.ckpt"):
            open_state(path)


def test_hostile_files_are_rejected_cheaply(tmp_path):
    def field(number: int, content: bytes) -> bytes:
        length, size = b"", len(content)
        while True:
            length += bytes([size & 127 | (128 if size > 127 else 0)])
            size >>= 7
            if not size:
                return bytes([number << 3 | 2]) + length + content

    def tensor_field(shape: bytes, size: int = 4) -> bytes:
        return field(1, field(1, b"w") + field(2, shape + field(2, b"Float32") + field(3, bytes(size))))

    path = tmp_path / "x.ckpt"
    huge = b"\x08" + b"\xff" * 9 + b"\x01"
    for data, message in (
        (tensor_field(b"\x08\x01" * 150_000), "not a MindSpore checkpoint"),
        (tensor_field(huge), "an invalid shape"),
        (tensor_field(b"\x08\xff\xff\xff\x7f" * 30), "2**48"),
        (field(1, b"\x0a\x00" * 100_000), "not a MindSpore checkpoint"),
        (b"\x0a\xff\xff\xff\xff\xff\xff\x7f", "truncated"),
        (b"\x0a" + b"\xff" * 20, ""),
        (tensor_field(b"\x08\x01") + tensor_field(b"\x08\x02", 8), "not a MindSpore checkpoint"),
    ):
        path.write_bytes(data)
        assert re.search(message.replace("**", r"\*\*"), refused_cheaply(path))
    path.write_bytes(tensor_field(b"\x08\x01"))
    assert open_state(path)["w"].shape == (1,)
