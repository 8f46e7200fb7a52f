"""Block types against the package gguf, and tensors that are read in chunks, scaled and converted."""

from __future__ import annotations

import warnings

import gguf
import numpy as np
import pytest
from file_readers import write_stored
from torch_files import Storage, View, refused_cheaply, save_legacy, save_zip, tensor

from opensora.checkpoint.element_types import NUMPY_TYPES, is_finite_chunk
from opensora.checkpoint.files import open_state
from opensora.checkpoint.formats.safetensors import read_safetensors, write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor, ConvertedTensor, FileTensor, ScaledTensor
from opensora.checkpoint.open_file import OpenFile, ScatteredFile
from opensora.checkpoint.quantized import (
    BLOCK_TYPES,
    FLOAT16_OFFSETS,
    dequantize,
    pack_q8_0,
    quantize_q8_0,
    unpack_q8_0,
)

Q8_0 = gguf.GGMLQuantizationType.Q8_0


def random_blocks(dtype: str, shape: tuple, seed: int = 0) -> np.ndarray:
    """Bytes (..., n * nbytes) of random blocks with finite scales, `shape` counts blocks."""
    rng = np.random.default_rng(seed)
    nbytes = BLOCK_TYPES[dtype].nbytes
    blocks = rng.integers(0, 256, (*shape, nbytes), dtype=np.uint8)
    for at in FLOAT16_OFFSETS[dtype]:
        blocks[..., at : at + 2] = rng.standard_normal((*shape, 1)).astype("<f2").view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def bits(values: np.ndarray) -> np.ndarray:
    return values.view(np.uint32)


@pytest.mark.parametrize("dtype", list(BLOCK_TYPES))
def test_dequantizing_equals_the_reference_bit_for_bit(dtype):
    data = random_blocks(dtype, (70, 3))
    expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[dtype])
    assert BLOCK_TYPES[dtype] == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[dtype]]
    found = dequantize(data, dtype)
    assert found.shape == expected.shape and (bits(found) == bits(expected)).all()
    assert (bits(dequantize(data.tobytes(), dtype)) == bits(expected.reshape(-1))).all()
    assert dequantize(data[:0], dtype).shape == (0, expected.shape[1])


@pytest.mark.parametrize("size", [1, 1e-3, 1e-8, 1e-42, 1e5])
def test_quantizing_to_q8_0_equals_the_reference_bit_for_bit(size):
    """Also for scales that float16 rounds to 0, zeros, and halves, which are rounded away from zero."""
    values = (np.random.default_rng(0).standard_normal((64, 256)) * size).astype(np.float32)
    values[3] = 0
    values[5, :32] = np.arange(-16, 16) / 2
    values[5, 0] = 127
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = gguf.quants.quantize(values, Q8_0)
    q, scale = quantize_q8_0(values)
    assert q.dtype == np.int8 and scale.dtype == np.float16 and scale.shape == (64, 8)
    assert (pack_q8_0(q, scale) == expected).all()
    unpacked = unpack_q8_0(expected)
    assert (unpacked[0] == q).all() and (unpacked[1] == scale).all()


def test_blocks_that_are_not_finite_stay_so():
    values = np.zeros((1, 96), np.float32)
    values[0, 0], values[0, 33] = np.nan, np.inf
    packed = pack_q8_0(*quantize_q8_0(values))
    restored = dequantize(packed, "Q8_0")
    assert not np.isfinite(restored[:, :64]).any() and (restored[:, 64:] == 0).all()
    assert not is_finite_chunk(packed, "Q8_0") and is_finite_chunk(packed[:, 68:].tobytes(), "Q8_0")


def stored(tmp_path, data: bytes, shape, dtype) -> FileTensor:
    """The bytes as a tensor at offset 16 of a file."""
    (tmp_path / "x").write_bytes(bytes(16) + data)
    return FileTensor(OpenFile(tmp_path / "x"), 16, shape, dtype)


def every_tensor(tmp_path) -> dict:
    """Tensors (70, 768) of every kind."""
    rng = np.random.default_rng(1)
    plain = rng.standard_normal((70, 768)).astype(np.float32)
    found = {"array": ArrayTensor(plain), "array.T": ArrayTensor(np.asfortranarray(plain))}
    for dtype, (elements, _) in BLOCK_TYPES.items():
        folder = tmp_path / dtype
        folder.mkdir()
        found[dtype] = stored(folder, random_blocks(dtype, (70, 768 // elements)).tobytes(), (70, 768), dtype)
    for dtype in ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"):
        folder = tmp_path / dtype
        folder.mkdir()
        found[dtype] = stored(
            folder, rng.integers(0, 60, 70 * 768).astype(NUMPY_TYPES[dtype]).tobytes(), (70, 768), dtype
        )
    whole = found["F16"]
    found["strided"] = FileTensor(whole.file, whole.offset, (70, 768), "F16", (1, 70))
    found["scattered"] = FileTensor(
        ScatteredFile(whole.file, [(16, 1000), (2016, 70 * 768 * 2 - 2000), (1016, 1000)]), 0, (70, 768), "F16"
    )
    integers = ArrayTensor(rng.integers(-127, 128, (70, 768)).astype(np.int8))
    for shape in ((), (1,), (70,), (70, 1), (70, 24)):
        scale = ArrayTensor(rng.uniform(0.5, 2, shape).astype(np.float16))
        found[f"scaled {shape}"] = ScaledTensor(integers, scale)
    found["scaled fp8"] = ScaledTensor(found["F8_E4M3"], ArrayTensor(np.float32([0.25])))
    found["scaled strided"] = ScaledTensor(found["strided"], ArrayTensor(np.float32([0.25])))
    found["converted strided"] = ConvertedTensor(found["strided"], "BF16")
    for dtype in ("F32", "F16", "BF16", "Q8_0"):
        found[f"converted {dtype}"] = ConvertedTensor(ArrayTensor(plain), dtype)
    return found


def test_chunks_rows_and_bytes_are_those_of_the_whole_tensor(tmp_path):
    rows = np.array([3, 69, 3, 0])
    for name, lazy in every_tensor(tmp_path).items():
        whole = lazy.numpy()
        assert whole.shape == lazy.shape == (70, 768), name
        for count in (1, 1000, 1 << 20):
            chunks = list(lazy.iter_values(count))
            assert all(chunk.ndim == 1 and chunk.size % 256 == 0 for chunk in chunks[:-1]), name
            assert max(chunk.size for chunk in chunks) <= max(count, 256), name
            joined = np.concatenate(chunks)
            assert joined.dtype == whole.dtype and (joined == whole.reshape(-1)).all(), name
        assert (lazy.rows(rows) == whole[rows]).all() and lazy.rows([]).shape == (0, 768), name
        data = b"".join(bytes(chunk) for chunk in lazy.iter_bytes())
        assert len(data) == lazy.nbytes, name
        assert np.ascontiguousarray(lazy.elements()).tobytes() == data, name
        q, scale = lazy.q8_0()
        assert (q.shape, q.dtype, scale.shape, scale.dtype) == ((70, 768), np.int8, (70, 24), np.float16), name
        for index in (-1, 70):
            with pytest.raises(IndexError):
                lazy.rows([index])


def test_stored_q8_0_numbers_are_kept(tmp_path):
    """The numbers of Q8_0 files of other tools, whose scale is not always max / 127."""
    data = random_blocks("Q8_0", (6, 2))
    lazy = stored(tmp_path, data.tobytes(), (6, 64), "Q8_0")
    q, scale = lazy.q8_0()
    assert (pack_q8_0(q, scale) == data).all()
    joined = ScaledTensor(ArrayTensor(q), ArrayTensor(scale))
    assert (joined.numpy() == lazy.numpy()).all()
    for source in (joined, ConvertedTensor(lazy, "Q8_0"), ConvertedTensor(joined, "Q8_0")):
        assert all((a == b).all() for a, b in zip(source.q8_0(), (q, scale)))
    assert b"".join(bytes(chunk) for chunk in ConvertedTensor(joined, "Q8_0").iter_bytes()) == data.tobytes()
    with pytest.raises(ValueError, match="rows of 40 values"):
        ArrayTensor(np.zeros((2, 40), np.float32)).q8_0()


def test_tensors_are_mapped_if_their_bytes_are_contiguous(tmp_path):
    found = every_tensor(tmp_path)
    for name, lazy in found.items():
        view = lazy.mapped()
        assert (view is not None) == (name in ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")), name
        if view is not None:
            stored = lazy.elements()
            assert view.dtype == stored.dtype and (view == stored).all()
            view[...] = 0  # never reaches the file
            assert (lazy.elements() == stored).all()
            lazy.drop_pages()
            assert (view == stored).all()
    one = found["F16"]
    single = FileTensor(ScatteredFile(one.file, [(16, one.nbytes)]), 0, (70, 768), "F16")
    assert (single.mapped() == one.elements()).all()
    assert FileTensor(one.file, 17, (70, 767), "F16").mapped() is None, "not aligned"
    assert np.shares_memory(one.mapped(), one.mapped()), "one map for each file"
    with open(tmp_path / "F16/x", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match="truncated"):
        one.mapped()


def test_bfloat16_is_rounded_like_by_the_reference():
    rng = np.random.default_rng(2)
    values = rng.integers(0, 1 << 32, 100_000, dtype=np.uint64).astype(np.uint32)  # also NaN, infinity, subnormals
    values[:4] = 0x7F800001, 0xFFFFFFFF, 0x7F7FFFFF, 0x3F808000  # NaN, NaN, rounded to infinity, a tie
    expected = gguf.quants.quantize(values.view(np.float32), gguf.GGMLQuantizationType.BF16).view(np.uint16)
    found = ConvertedTensor(ArrayTensor(values.view(np.float32)), "BF16").elements()
    assert (found == expected).all()


def test_float16_overflow_is_an_error():
    for bad in (65520, -1e6):
        converted = ConvertedTensor(ArrayTensor(np.float32([1, bad])), "F16", "x.safetensors: w")
        with pytest.raises(ValueError, match="x.safetensors: w: holds .*, more than float16's 65504"):
            list(converted.iter_bytes())
    kept = ConvertedTensor(ArrayTensor(np.float32([65504, np.inf, np.nan])), "F16").numpy()
    assert kept.tolist()[:2] == [65504, np.inf] and np.isnan(kept[2])


@pytest.mark.parametrize("shape", [(2,), (3, 4), (4, 3), (1, 3), (3, 1, 1)])
def test_scale_of_a_wrong_shape_is_rejected(shape):
    with pytest.raises(ValueError, match="does not fit a tensor of shape"):
        ScaledTensor(ArrayTensor(np.zeros((3, 64), np.int8)), ArrayTensor(np.ones(shape, np.float32)))


@pytest.mark.parametrize("scale_shape", [(), (1,)])
@pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
def test_scaled_float8_is_joined(tmp_path, scale_shape, name):
    q = np.arange(12, dtype=np.uint8).reshape(3, 4) + 48
    write_stored(
        tmp_path / "x.safetensors",
        {
            "scaled_fp8": ("F8_E4M3", np.zeros(0, np.uint8)),
            "a.weight": ("F8_E4M3", q),
            f"a.{name}": ("F32", np.full(scale_shape, 0.5, np.float32)),
            "a.scale_input": ("F32", np.ones(scale_shape, np.float32)),
            "b.weight": ("F8_E5M2", q),
            "b.bias": ("F32", np.ones(3, np.float32)),
        },
    )
    state = open_state(tmp_path / "x.safetensors")
    plain = read_safetensors(tmp_path / "x.safetensors")
    assert set(state) == {"a.weight", "b.weight", "b.bias"}
    assert (state["a.weight"].numpy() == plain["a.weight"].numpy() * np.float32(0.5)).all()
    assert isinstance(state["b.weight"], FileTensor)
    assert set(open_state(tmp_path / "x.safetensors", join_scales=False)) == set(plain)


@pytest.mark.parametrize("scale_shape", [(4,), (4, 1), (4, 2)])
def test_scaled_integers_are_joined_in_every_format(tmp_path, scale_shape):
    rng = np.random.default_rng(0)
    q = rng.integers(-127, 128, (4, 64)).astype(np.int8)
    scale = rng.uniform(0.5, 2, scale_shape).astype(np.float32)
    expected = (q.reshape(4, -1, 64 // scale.reshape(4, -1).shape[1]) * scale.reshape(4, -1)[..., None]).reshape(4, 64)
    content = {"a.weight": q, "a.weight_scale": scale, "b.weight": q}
    write_safetensors(tmp_path / "x.safetensors", {name: ArrayTensor(value) for name, value in content.items()})
    save_zip(tmp_path / "zip.pt", {name: tensor(value) for name, value in content.items()})
    save_legacy(tmp_path / "legacy.pt", {name: tensor(value) for name, value in content.items()})
    for file in ("x.safetensors", "zip.pt", "legacy.pt"):
        state = open_state(tmp_path / file)
        assert set(state) == {"a.weight", "b.weight"}
        assert (state["a.weight"].numpy() == expected).all()
        assert state["b.weight"].dtype == "I8", "without a scale: integers, which loading reports"


def test_scale_that_does_not_fit_its_weight_is_named(tmp_path):
    content = {"a.weight": np.zeros((4, 64), np.int8), "a.weight_scale": np.ones(3, np.float32)}
    write_safetensors(tmp_path / "x.safetensors", {name: ArrayTensor(value) for name, value in content.items()})
    assert "a.weight_scale: a scale of shape (3,)" in refused_cheaply(tmp_path / "x.safetensors")


def test_transposed_weights_of_torch_files_are_scaled_and_quantized(tmp_path):
    values = np.random.default_rng(0).integers(-127, 128, (64, 4)).astype(np.int8)
    transposed = View(Storage(values.reshape(-1)), (4, 64), strides=(1, 4))
    save_zip(tmp_path / "x.pt", {"a.weight": transposed, "a.weight_scale": tensor(np.float32([2]))})
    found = open_state(tmp_path / "x.pt")["a.weight"]
    assert (found.numpy() == values.T * np.float32(2)).all()
    assert (found.q8_0()[0] == quantize_q8_0(values.T * np.float32(2))[0]).all()
    save_zip(tmp_path / "x.pt", {"a.weight": transposed, "a.weight_scale": tensor(np.full((4, 2), 2, np.float16))})
    assert (open_state(tmp_path / "x.pt")["a.weight"].q8_0()[0] == values.T).all(), "the stored numbers"
