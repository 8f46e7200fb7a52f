"""Fusing LoRAs into weights, extracting them from two models, and both commands."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lora_files import DIALECTS, MODULES, random_lora, same_layers, tensors_of
from safetensors.numpy import load_file, save_file

from opensora.checkpoint.element_types import decode, encode
from opensora.checkpoint.files import open_state
from opensora.checkpoint.formats.gguf import write_gguf
from opensora.checkpoint.formats.safetensors import write_safetensors
from opensora.checkpoint.lazy_tensor import ArrayTensor, ConvertedTensor
from opensora.checkpoint.lora.extract import Truncation, approximate, extract_lora
from opensora.checkpoint.lora.files import LORA_NAME, LoRASettings, LowRank, read_lora, read_settings, write_lora
from opensora.checkpoint.lora.fuse import Change, FusedTensor, fuse_loras
from opensora.config.lora import LoRASpec
from opensora.errors import UserError

WEIGHTS = "diffusion_pytorch_model.safetensors"
CONFIG = {"_class_name": "Tiny", "layers": 2}


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """A model's float32 tensors: linear layers, biases, a norm, a table and a convolution."""
    rng = np.random.default_rng(seed)
    shapes = {
        **{f"{name}.weight": shape for name, shape in MODULES.items()},
        **{f"{name}.bias": shape[:1] for name, shape in MODULES.items()},
        "norm.weight": (5,),
        "scale_shift_table": (6, 5),
        "pos_embed.proj.weight": (5, 3, 2, 2),
    }
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def save_model(folder: Path, tensors, dtype: str = "F32") -> Path:
    stored = {name: ArrayTensor(encode(value, dtype, name), dtype) for name, value in tensors.items()}
    write_safetensors(folder / WEIGHTS, stored)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def values(folder: Path) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in open_state(folder).items()}


def save_lora(path: Path, layers) -> LoRASpec:
    write_lora(path, layers, LoRASettings(2, 2.0))
    return LoRASpec(path)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_several_loras_are_fused_in_the_type_of_the_file(tmp_path, dtype):
    base = weights()
    model = save_model(tmp_path / "model", base, dtype)
    first, second = random_lora(2, 0.5), random_lora(3, 0.25, 1, {"proj_out": MODULES["proj_out"]})
    specs = [
        replace(save_lora(tmp_path / "1.safetensors", first), scale=-0.7),
        save_lora(tmp_path / "2.safetensors", second),
    ]
    assert fuse_loras(model, specs, tmp_path / "out") == len(MODULES)
    before, after = open_state(model), open_state(tmp_path / "out")
    assert {name: tensor.dtype for name, tensor in after.items()} == dict.fromkeys(base, dtype)
    assert json.loads((tmp_path / "out/config.json").read_text()) == CONFIG
    for name in base:
        module = name.removesuffix(".weight")
        expected = before[name].numpy().astype(np.float64)
        if module in first:
            expected -= 0.7 * 0.5 * first[module].b.astype(np.float64) @ first[module].a
        if module in second and name.endswith(".weight"):
            expected += 0.25 * second[module].b.astype(np.float64) @ second[module].a
        tolerance = {"F32": 1e-6, "F16": 2**-11, "BF16": 2**-8}[dtype]
        assert np.abs(after[name].numpy() - expected).max() <= tolerance * np.abs(expected).max()
        if module not in MODULES:
            assert bytes(b"".join(after[name].iter_bytes())) == bytes(b"".join(before[name].iter_bytes()))


def test_large_weights_are_fused_in_chunks():
    """Chunks of flat values begin and end within rows."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((1100, 1999), np.float32)
    layer = LowRank(rng.standard_normal((4, 1999), np.float32), rng.standard_normal((1100, 4), np.float32), 0.5)
    fused = FusedTensor(ArrayTensor(weight), [Change(layer, 2.0)])
    chunks = [np.frombuffer(chunk, np.float32) for chunk in fused.iter_bytes()]
    assert len(chunks) == 3 and chunks[0].size % 1999
    np.testing.assert_allclose(
        np.concatenate(chunks).reshape(1100, 1999), weight + layer.b @ layer.a, rtol=0, atol=1e-5
    )


def test_scale_0_leaves_the_weights_bit_for_bit(tmp_path):
    model = save_model(tmp_path / "model", weights(), "BF16")
    spec = replace(save_lora(tmp_path / LORA_NAME, random_lora()), scale=0.0)
    assert fuse_loras(model, [spec], tmp_path / "out") == 0
    assert (tmp_path / "out" / WEIGHTS).read_bytes() == (model / WEIGHTS).read_bytes()


def test_float64_stays_float64():
    layer = random_lora(modules={"x": (2, 3)})["x"]
    fused = FusedTensor(ArrayTensor(np.full((2, 3), 1 / 3)), [Change(layer, 1.0)])
    found = np.frombuffer(b"".join(fused.iter_bytes()), np.float64).reshape(2, 3)
    np.testing.assert_allclose(found, 1 / 3 + layer.delta().astype(np.float64), rtol=1e-15)


def test_what_cannot_be_fused_is_refused(tmp_path):
    model = save_model(tmp_path / "model", weights(), "F16")
    spec = save_lora(tmp_path / LORA_NAME, random_lora())
    (tmp_path / "file").write_text("")
    for output, message in (
        (model, "is in .*model, the folder of the weights"),
        (model / "x/y", "is in"),
        (tmp_path / "file", "is a file"),
    ):
        with pytest.raises(UserError, match=f"--output {output}: {message}"):
            fuse_loras(model, [spec], output)
    with pytest.raises(UserError, match="holds a whole model, not a LoRA"):
        fuse_loras(model, [LoRASpec(model)], tmp_path / "out")
    huge = save_lora(tmp_path / "huge.safetensors", random_lora(factor=1e6))
    with pytest.raises(UserError, match="out: .*more than float16's 65504"):
        fuse_loras(model, [huge], tmp_path / "out")
    assert not list(tmp_path.glob("out/*"))
    (model / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="config.json"):
        fuse_loras(model, [spec], tmp_path / "out")


def test_quantized_weights_are_refused(tmp_path):
    rows = ArrayTensor(np.ones((6, 32), np.float32))
    (tmp_path / "config.json").write_text("{}")
    write_gguf(
        tmp_path / "x.gguf", {"a.weight": ConvertedTensor(rows, "Q8_0")}, {"general.architecture": "opensorat2v_v1_3"}
    )
    scaled = {"a.weight": ArrayTensor(np.ones((6, 32), np.int8)), "a.weight_scale": ArrayTensor(np.ones(6, np.float16))}
    write_safetensors(tmp_path / "x.safetensors", scaled)
    spec = save_lora(tmp_path / "lora/x.safetensors", random_lora(modules={"a": (6, 32)}))
    for name, kind in (("x.gguf", "Q8_0"), ("x.safetensors", "I8")):
        with pytest.raises(
            UserError, match=rf"{name}: 'a.weight' is quantized \({kind}\); .*opensora convert --to q8_0"
        ):
            fuse_loras(tmp_path / name, [spec], tmp_path.parent / f"{tmp_path.name}-out")


def test_difference_of_full_rank_is_restored(tmp_path):
    base, tuned = weights(0), weights(1)
    base_path = save_model(tmp_path / "base", base)
    tuned_path = save_model(tmp_path / "tuned", tuned)
    output = tmp_path / LORA_NAME
    summary = extract_lora(base_path, tuned_path, Truncation(100), output)
    assert (summary.layers, summary.lowest_rank, summary.highest_rank) == (5, 4, 5)
    assert summary.energy == pytest.approx(1, abs=1e-12)
    fuse_loras(base_path, [LoRASpec(output)], tmp_path / "out")
    for name, value in values(tmp_path / "out").items():
        expected = tuned[name] if name.removesuffix(".weight") in MODULES else base[name]
        np.testing.assert_allclose(value, expected, rtol=0, atol=3e-6)


def test_lora_is_extracted_from_the_model_it_was_fused_into(tmp_path):
    """Of wide, tall and square layers, with another rank in one of them."""
    modules = {"wide": (20, 30), "tall": (30, 20), "square": (25, 25)}
    rng = np.random.default_rng(0)
    base = {f"{name}.weight": rng.standard_normal(shape, np.float32) for name, shape in modules.items()}
    model = save_model(tmp_path / "model", {**base, "same.weight": np.ones((3, 3), np.float32)})
    layers = {**random_lora(4, 0.5, modules=modules), "tall": random_lora(2, 2.0, modules=modules)["tall"]}
    fuse_loras(model, [save_lora(tmp_path / "lora/x.safetensors", layers)], tmp_path / "tuned")
    summary = extract_lora(model, tmp_path / "tuned", Truncation(energy=1 - 1e-9), tmp_path / "found.safetensors")
    assert (summary.layers, summary.lowest_rank, summary.highest_rank) == (3, 2, 4)
    found = read_lora(tmp_path / "found.safetensors", {**modules, "same": (3, 3)})
    assert {name: layer.rank for name, layer in found.items()} == {"wide": 4, "tall": 2, "square": 4}
    for name, layer in layers.items():
        assert found[name].factor == 1
        np.testing.assert_allclose(found[name].delta(), layer.delta(), rtol=0, atol=2e-6)
        np.testing.assert_allclose(
            np.linalg.norm(found[name].a, axis=1), np.linalg.norm(found[name].b, axis=0), rtol=1e-4
        )
    settings = read_settings(tmp_path / "found.safetensors")
    assert settings.rank == 4 and settings.rank_pattern == {"^tall": 2} and settings.alpha_pattern == {"^tall": 2}


def test_truncation_is_that_of_the_singular_value_decomposition():
    difference = np.random.default_rng(0).standard_normal((30, 50))
    u, s, vt = np.linalg.svd(difference, full_matrices=False)
    shares = np.cumsum(s**2) / np.sum(s**2)
    for rank, truncation in ((7, Truncation(7)), (12, Truncation(energy=(shares[10] + shares[11]) / 2))):
        best = (u[:, :rank] * s[:rank]) @ vt[:rank]
        found = approximate(difference, truncation)
        assert found.layer.rank == rank
        assert found.kept / found.total == pytest.approx(shares[rank - 1], rel=1e-12)
        np.testing.assert_allclose(found.layer.delta(), best, rtol=0, atol=1e-5)
        np.testing.assert_allclose(approximate(difference.T, truncation).layer.delta(), best.T, rtol=0, atol=1e-5)


def test_16_bit_models_are_extracted(tmp_path):
    base, tuned = weights(0), weights(1)
    paths = save_model(tmp_path / "base", base, "BF16"), save_model(tmp_path / "tuned", tuned, "F16")
    extract_lora(*paths, Truncation(5), tmp_path / LORA_NAME)
    for name, layer in read_lora(tmp_path / LORA_NAME, MODULES).items():
        name = f"{name}.weight"
        expected = tuned[name].astype(np.float16).astype(np.float32) - decode(encode(base[name], "BF16", name), "BF16")
        np.testing.assert_allclose(layer.delta(), expected, rtol=0, atol=3e-6)


def test_differences_that_a_lora_cannot_hold_are_reported(tmp_path, capsys):
    base, tuned = weights(), weights()
    tuned["proj_out.weight"] = base["proj_out.weight"] + 1
    tuned["proj_out.bias"] = base["proj_out.bias"] * np.float32(1.5)
    tuned["norm.weight"] = base["norm.weight"] * np.float32(1.25)
    base["scale_shift_table"] *= 0
    paths = save_model(tmp_path / "base", base), save_model(tmp_path / "tuned", tuned)
    summary = extract_lora(*paths, Truncation(1), tmp_path / LORA_NAME)
    assert summary.layers == 1
    error = capsys.readouterr().err
    assert f"warning: {paths[1] / WEIGHTS}: 3 tensors differ that are not weights of linear layers" in error
    assert "scale_shift_table by inf %, proj_out.bias by 50 %, norm.weight by 25 %" in error


def test_what_cannot_be_extracted_is_refused(tmp_path):
    base, other = weights(), weights(1)
    model = save_model(tmp_path / "model", base)
    missing = save_model(tmp_path / "missing", {name: other[name] for name in other if name != "norm.weight"})
    reshaped = save_model(tmp_path / "reshaped", {**other, "norm.weight": np.ones(6, np.float32)})
    diverged = save_model(tmp_path / "diverged", {**other, "proj_out.weight": np.full((4, 5), np.nan, np.float32)})
    for tuned, message in (
        (model, "has the same linear layers as"),
        (missing, r"missing.*1 tensors are missing \(norm.weight\), so it is another model"),
        (reshaped, r"reshaped.*'norm.weight' is of shape \(6,\), but \(5,\) in"),
        (diverged, "'proj_out.weight' holds NaN or infinity in .*diverged"),
    ):
        with pytest.raises(UserError, match=message):
            extract_lora(model, tuned, Truncation(2), tmp_path / LORA_NAME)
    with pytest.raises(UserError, match="is a file of weights that is read"):
        extract_lora(model, reshaped, Truncation(2), reshaped / WEIGHTS)
    assert not (tmp_path / LORA_NAME).exists()


def test_commands(run, tmp_path):
    base, tuned = save_model(tmp_path / "base", weights(0)), save_model(tmp_path / "tuned", weights(1))
    output = tmp_path / LORA_NAME
    finished = run("tools/ckpt/extract_lora.py", "--base", base, "--tuned", tuned, "--energy", 1, "--output", output)
    assert finished.returncode == 0, finished.stderr
    assert f"{output}: 5 layers of rank 4 to 5" in finished.stdout and "holds 100 %" in finished.stdout
    save_file(tensors_of(random_lora(), DIALECTS["kohya"]), tmp_path / "kohya.safetensors")
    loras = (f"{output}:1.0", f"{tmp_path}/kohya.safetensors:-0.5")
    finished = run("tools/ckpt/fuse_lora.py", "--model_path", base, "--lora", *loras, "--output", tmp_path / "out")
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == f"{tmp_path}/out: 5 layers were changed\n"
    found, expected = load_file(tmp_path / "out" / WEIGHTS), weights(1)
    for name, layer in random_lora().items():
        change = expected[f"{name}.weight"] - 0.5 * layer.delta()
        np.testing.assert_allclose(found[f"{name}.weight"], change, rtol=0, atol=1e-5)
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", WEIGHTS]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--output", "x.safetensors"), "give either --rank or --energy"),
        (("--output", "x.safetensors", "--rank", "0"), "--rank must be 1 or more"),
        (("--output", "x.safetensors", "--energy", "1.5"), "--energy 1.5 should be above 0"),
        (("--output", "x.bin", "--rank", "1"), "--output x.bin: the name of the file must end in .safetensors"),
    ],
)
def test_flags_are_checked_first(run, arguments, message):
    finished = run("tools/ckpt/extract_lora.py", "--base", "none", "--tuned", "none", *arguments)
    assert finished.returncode == 1 and message in finished.stderr and finished.stderr.count("\n") == 1


def test_written_lora_is_equal_after_a_second_round(tmp_path):
    layers = random_lora(3, 0.3)
    save_lora(tmp_path / "1.safetensors", layers)
    again = read_lora(tmp_path / "1.safetensors", MODULES)
    assert same_layers(again, layers)
    save_lora(tmp_path / "2.safetensors", again)
    assert (tmp_path / "1.safetensors").read_bytes() == (tmp_path / "2.safetensors").read_bytes()
