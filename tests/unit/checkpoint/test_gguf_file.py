"""GGUF files, against the package gguf."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from test_quantized import random_blocks
from torch_files import refused_cheaply

from opensora.checkpoint.files import find_weights, open_state
from opensora.checkpoint.formats.gguf import read_gguf, write_gguf
from opensora.checkpoint.lazy_tensor import ArrayTensor, ConvertedTensor
from opensora.checkpoint.quantized import BLOCK_TYPES
from opensora.checkpoint.t5_names import gguf_name, torch_name

DIT = {"general.architecture": "opensorat2v_v1_3"}
T5 = {"general.architecture": "t5encoder"}


def random(*shape) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_the_reference_reads_our_files(tmp_path):
    weights = ArrayTensor(random(6, 64))
    tensors = {dtype: ConvertedTensor(weights, dtype) for dtype in ("F32", "F16", "BF16", "Q8_0")}
    tensors.update(steps=ArrayTensor(np.int64([3])), conv=ArrayTensor(random(2, 3, 1, 2, 2)))
    write_gguf(tmp_path / "x.gguf", tensors, {**DIT, "a": 3, "b": True, "c": 0.5, "d": "ü"})
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    keys = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert keys == {**DIT, "a": 3, "b": True, "c": 0.5, "d": "ü", "general.alignment": 32}
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert list(found) == list(tensors)
    for dtype in ("F32", "F16", "BF16", "Q8_0"):
        values = gguf.quants.dequantize(found[dtype].data, found[dtype].tensor_type)
        assert found[dtype].tensor_type.name == dtype and found[dtype].shape.tolist() == [64, 6]
        assert (values.astype(np.float32) == tensors[dtype].numpy()).all()
    assert found["steps"].data.tolist() == [3] and (found["conv"].data == tensors["conv"].numpy()).all()
    state, metadata = read_gguf(tmp_path / "x.gguf")
    assert metadata == keys and list(state) == list(tensors)
    for name, tensor in tensors.items():
        assert (state[name].dtype, state[name].shape) == (tensor.dtype, tensor.shape)
        assert (state[name].numpy() == tensor.numpy()).all()


def write_reference(
    path: Path, architecture: str, tensors: dict, alignment: int = 32, more=lambda writer: None
) -> Path:
    """A file of the package gguf; blocks are (bytes, type)."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_custom_alignment(alignment)
    more(writer)
    for name, value in tensors.items():
        data, dtype = value if isinstance(value, tuple) else (value, None)
        writer.add_tensor(name, data, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("alignment", [32, 128, 8])
def test_we_read_files_of_the_reference(tmp_path, alignment):
    arrays = {str(np.dtype(kind)): np.arange(6).reshape(2, 3).astype(kind) for kind in "f4 f2 f8 i1 i2 i4 i8".split()}
    blocks = {name: (random_blocks(name, (5, 3)), gguf.GGMLQuantizationType[name]) for name in BLOCK_TYPES}
    bfloat = gguf.quants.quantize(random(3, 64), gguf.GGMLQuantizationType.BF16)

    def add_vocabulary(writer):
        writer.add_token_list([f"token {i}" for i in range(3000)])
        writer.add_token_scores([0.5] * 3000)
        writer.add_array("nested", [[1, 2], [3]])
        writer.add_float64("x", 1e-6)

    content = {**arrays, **blocks, "bf16": (bfloat, gguf.GGMLQuantizationType.BF16)}
    path = write_reference(tmp_path / "x.gguf", "opensorat2v_v1_3", content, alignment, add_vocabulary)
    state, metadata = read_gguf(path)
    assert metadata["tokenizer.ggml.tokens"] is None and metadata["x"] == 1e-6
    assert set(state) == set(content)
    for name, array in arrays.items():
        assert state[name].numpy().dtype == array.dtype and (state[name].numpy() == array).all()
    for name, (data, kind) in blocks.items():
        assert state[name].shape == (5, 3 * BLOCK_TYPES[name].elements)
        assert (state[name].numpy() == gguf.quants.dequantize(data, kind)).all()
        assert (state[name].elements() == data).all()
    assert (state["bf16"].numpy() == gguf.quants.dequantize(bfloat, gguf.GGMLQuantizationType.BF16)).all()


def test_version_2_is_read(tmp_path):
    write_gguf(tmp_path / "x.gguf", {"w": ArrayTensor(random(3))}, DIT)
    change(tmp_path / "x.gguf", 4, struct.pack("<I", 2))
    assert (open_state(tmp_path / "x.gguf")["w"].numpy() == random(3)).all()


def test_a_file_of_123_tensors_is_not_taken_for_safetensors(tmp_path):
    write_gguf(tmp_path / "x.gguf", {str(i): ArrayTensor(np.float32([i])) for i in range(123)}, DIT)
    assert len(open_state(tmp_path / "x.gguf")) == 123


def test_t5_has_the_names_of_the_reference(tmp_path):
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5, 3)
    layers = [f"SelfAttention.{name}" for name in "qkvo"] + ["SelfAttention.relative_attention_bias", "layer_norm"]
    torch = ["shared", "encoder.final_layer_norm", "lm_head"] + [f"encoder.block.2.layer.0.{name}" for name in layers]
    torch += [f"encoder.block.2.layer.1.{name}" for name in ("layer_norm", "DenseReluDense.wo")]
    torch += [f"encoder.block.2.layer.1.DenseReluDense.wi_{i}" for i in (0, 1)]
    for name in (f"{name}.weight" for name in torch):
        expected = names.get_name(name, try_suffixes=(".weight",))
        assert gguf_name(name) == expected and torch_name(expected) == name
    for name in (f"decoder.block.1.layer.{name}.weight" for name in ("0.SelfAttention.q", "1.EncDecAttention.k")):
        assert torch_name(names.get_name(name, try_suffixes=(".weight",))).startswith("decoder.")
    assert torch_name("dec.output_norm.weight").startswith("decoder.")
    write_gguf(tmp_path / "model.gguf", {f"{name}.weight": ArrayTensor(random(2, 2)) for name in torch}, T5)
    assert [tensor.name for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors][:2] == [
        "token_embd.weight",
        "enc.output_norm.weight",
    ]
    assert find_weights(tmp_path) == tmp_path / "model.gguf"
    assert list(open_state(tmp_path)) == [f"{name}.weight" for name in torch]
    path = write_reference(tmp_path / "t5.gguf", "t5", {"token_embd.weight": random(2, 2)})
    assert set(open_state(path)) == {"shared.weight"}


def change(path: Path, at: int, data: bytes) -> None:
    content = bytearray(path.read_bytes())
    content[at : at + len(data)] = data
    path.write_bytes(content)


def small_file(path: Path) -> int:
    """Writes a file; returns the length of its header."""
    tensors = {
        "token_embd.weight": ArrayTensor(random(2, 32)),
        "b": ConvertedTensor(ArrayTensor(random(2, 32)), "Q8_0"),
    }
    write_gguf(path, tensors, {**T5, "general.name": "x" * 20, "n": 7})
    return path.stat().st_size - 256 - 96


def test_file_truncated_at_any_byte_is_rejected(tmp_path):
    path = tmp_path / "x.gguf"
    length = small_file(path)
    data = path.read_bytes()
    assert length < 400
    for keep in [*range(4, length + 1), length + 255, length + 256 + 67]:
        path.write_bytes(data[:keep])
        with pytest.raises(ValueError, match="x.gguf: "):
            read_gguf(path)
    path.write_bytes(data[: length + 256 + 68])
    assert read_gguf(path)[0]["b"].numpy().shape == (2, 32), "without the padding after the last tensor"


def header(*keys: bytes, tensors: tuple = (), version: int = 3, counts: tuple = ()) -> bytes:
    numbers = counts or (len(tensors), len(keys))
    return b"GGUF" + struct.pack("<IQQ", version, *numbers) + b"".join(keys) + b"".join(tensors)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def entry(name: str, shape: tuple, kind: int = 0, offset: int = 0) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


ARCH = key("general.architecture", 8, text("opensorat2v_v1_3"))


@pytest.mark.parametrize(
    "data, message",
    [
        (header(ARCH, version=1), "of version 1; versions 2 and 3 are supported"),
        (header(ARCH, version=3 << 24), "of a big-endian machine"),
        (header(key("general.architecture", 8, text("llama"))), "holds a llama model; supported are t5encoder and t5"),
        (header(key("general.architecture", 8, text("flux"))), "holds a flux model"),
        (header(key("general.architecture", 4, bytes(4))), "holds a 0 model"),
        (header(key("general.name", 8, text("x"))), "has no general.architecture"),
        (header(ARCH, ARCH), "the key 'general.architecture' comes twice"),
        (header(ARCH, tensors=(entry("a", (2,)), entry("a", (2,), offset=32))), "the tensor 'a' comes twice"),
        (header(ARCH, tensors=(entry("a", (2, 256), 10),)), "'a' has the type Q2_K, which is not supported"),
        (header(ARCH, tensors=(entry("a", (2, 32), 3),)), "supported are F32, F16, Q4_0, Q5_0, Q8_0, Q4_K"),
        (header(ARCH, tensors=(entry("a", (2, 32), 99),)), "'a' has the type 99"),
        (header(ARCH, tensors=(entry("a", (2, 33), 8),)), "'a' of shape (2, 33) cannot have the type Q8_0"),
        (header(ARCH, tensors=(entry("a", (2, 128), 12),)), "'a' of shape (2, 128) cannot have the type Q4_K"),
        (header(ARCH, tensors=(entry("a", (), 8),)), "'a' of shape () cannot have the type Q8_0"),
        (header(ARCH, tensors=(entry("a", (1 << 40, 1 << 40)),)), "a tensor of more than 2**48 elements"),
        (header(ARCH, tensors=(entry("a", (1 << 50,)),)), "an invalid shape"),
        (header(ARCH, tensors=(entry("a", (1,) * 40),)), "'a' has 40 axes"),
        (header(ARCH, tensors=(entry("a", (1 << 30,)),)), "truncated"),
        (header(ARCH, tensors=(entry("a", (2,), offset=8),)), "'a' is not aligned to 32 bytes"),
        (header(ARCH, tensors=(entry("a", (2,), offset=32),)), "the bytes of 'a' do not follow"),
        (header(ARCH, tensors=(entry("a", (2,)), entry("b", (2,)))), "the bytes of 'b' do not follow"),
        (header(ARCH, tensors=(entry("a", (2,), offset=1 << 63),)), "the bytes of 'a' do not follow"),
        (header(ARCH, tensors=(entry("a", (2,)),)) + bytes(500), "bytes after the last tensor are unused"),
        (header(ARCH, counts=(1 << 60, 1)), "the header is truncated"),
        (header(ARCH, counts=(0, 1 << 60)), "the key '' comes twice"),
        (header(ARCH, key("x", 9, struct.pack("<IQ", 8, 1 << 60))), "the header is truncated"),
        (header(ARCH, key("x", 9, struct.pack("<IQ", 0, 1 << 60))), "the header is truncated"),
        (header(ARCH, key("x", 9, struct.pack("<IQ", 9, 2) * 9)), "nested too deep"),
        (header(ARCH, key("x", 13, b"")), "a value of the unknown type 13"),
        (header(ARCH, struct.pack("<Q", 1 << 62)), "a name of 4611686018427387904 bytes"),
        (
            header(ARCH, key("general.alignment", 4, struct.pack("<I", 48))),
            "general.alignment 48 is not a power of two",
        ),
        (header(ARCH, key("general.alignment", 4, bytes(4))), "general.alignment 0"),
        (header(ARCH, key("general.alignment", 4, struct.pack("<I", 1 << 31))), "general.alignment 2147483648"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damaged_or_foreign_file_is_rejected_cheaply(tmp_path, data, message):
    (tmp_path / "x.gguf").write_bytes(data + bytes(-len(data) % 32 + 8))
    assert message in refused_cheaply(tmp_path / "x.gguf")


def test_file_without_tensors_is_rejected(tmp_path):
    (tmp_path / "x.gguf").write_bytes(header(ARCH).ljust(96, b"\0"))
    assert "holds no tensors" in refused_cheaply(tmp_path / "x.gguf")


def test_same_tensor_under_both_names_is_rejected(tmp_path):
    tensors = {"token_embd.weight": random(2, 2), "shared.weight": random(2, 2)}
    write_reference(tmp_path / "x.gguf", "t5", tensors)
    assert "has tensors twice" in refused_cheaply(tmp_path / "x.gguf")


def test_a_file_that_gguf_cannot_hold_is_not_written(tmp_path):
    for name, array, message in (
        ("x.safetensors", random(2), "must end in .gguf"),
        ("x.gguf", np.zeros(2, bool), "'w' is BOOL, which GGUF does not have"),
    ):
        with pytest.raises(ValueError, match=message):
            write_gguf(tmp_path / name, {"w": ArrayTensor(array)}, DIT)
    assert not any(tmp_path.iterdir())
