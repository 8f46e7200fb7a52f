"""Reading LoRA files of every dialect, and writing them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from file_readers import write_stored
from lora_files import DIALECTS, MODULES, random_lora, same_layers, save_peft, tensors_of
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from torch_files import as_tensors, save_zip

from opensora.checkpoint.formats.safetensors import read_metadata
from opensora.checkpoint.lazy_tensor import ArrayTensor
from opensora.checkpoint.lora.files import (
    LORA_NAME,
    LoRASettings,
    LowRank,
    find_lora,
    linear_layers,
    read_lora,
    read_settings,
    tensor_names,
    write_lora,
)
from opensora.errors import UserError

Q, FF = "transformer_blocks.0.attn1.to_q", "transformer_blocks.1.ff.net.0.proj"


@pytest.mark.parametrize("name", DIALECTS)
def test_every_dialect_is_read(tmp_path, name):
    dialect = DIALECTS[name]
    layers = random_lora(rank=3, factor=0.5 if dialect.has_alpha else 1.0)
    save_file(tensors_of(layers, dialect), tmp_path / "x.safetensors")
    assert same_layers(read_lora(tmp_path / "x.safetensors", MODULES), layers)
    save_zip(tmp_path / "x.pt", as_tensors(tensors_of(layers, dialect)))
    assert same_layers(read_lora(tmp_path / "x.pt", MODULES), layers)


def test_delta_is_the_scaled_product():
    layer = LowRank(np.float32([[1, 2]]), np.float32([[3], [5]]), 0.5)
    assert layer.rank == 1
    assert layer.delta().tolist() == [[1.5, 3], [2.5, 5]] and layer.delta().dtype == np.float32


@pytest.mark.parametrize("use_rslora", [False, True])
def test_peft_folder_has_alphas_by_layer(tmp_path, use_rslora):
    layers = random_lora(rank=4)
    layers[FF] = random_lora(rank=8)[FF]
    config = {"rank_pattern": {"ff.net.0.proj": 8}, "alpha_pattern": {r"^proj_out": 3, r"1\.ff\.net\.2$": 5.5}}
    save_peft(tmp_path / "x", layers, r=4, lora_alpha=16, use_rslora=use_rslora, **config)
    found = read_lora(tmp_path / "x", MODULES)
    root = np.sqrt if use_rslora else np.asarray
    assert found[Q].factor == 16 / root(4)
    assert found[FF].factor == 16 / root(8)
    assert found["proj_out"].factor == 3 / root(4)
    assert found["transformer_blocks.1.ff.net.2"].factor == 5.5 / root(4)
    assert read_settings(tmp_path / "x").use_rslora is use_rslora


def test_alpha_comes_from_the_tensor_before_the_metadata(tmp_path):
    layers = random_lora(rank=2)
    tensors, metadata = tensors_of(layers, DIALECTS["diffusers"]), LoRASettings(2, 8.0).to_metadata()
    tensors[f"transformer.{Q}.alpha"] = np.array([1], np.float16)
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    found = read_lora(tmp_path / "x.safetensors", MODULES)
    assert (found[Q].factor, found[FF].factor) == (0.5, 4)


def test_alpha_of_kohya_is_in_the_metadata(tmp_path):
    tensors = tensors_of(random_lora(rank=2), DIALECTS["diffusers"])
    for alpha, factor in (("1.0", 0.5), ("None", 1), ("Dynamic", 1)):
        save_file(tensors, tmp_path / "x.safetensors", {"ss_network_dim": "2", "ss_network_alpha": alpha})
        assert read_lora(tmp_path / "x.safetensors", MODULES)[Q].factor == factor
    save_file(tensors, tmp_path / "x.safetensors", {"ss_network_dim": "2", "ss_network_alpha": "1.0"})
    assert read_settings(tmp_path / "x.safetensors") == LoRASettings(2, 1.0)


def test_files_without_settings_have_none(tmp_path):
    tensors = tensors_of(random_lora(), DIALECTS["diffsynth"])
    save_file(tensors, tmp_path / "x.safetensors")
    save_zip(tmp_path / "x.pt", as_tensors(tensors))
    assert read_settings(tmp_path / "x.safetensors") is None and read_settings(tmp_path / "x.pt") is None


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_16_bit_factors_become_float32(tmp_path, dtype):
    values = np.float32([[0.5, -1.25, 3]])
    bits = values.astype(np.float16) if dtype == "F16" else (values.view(np.uint32) >> 16).astype(np.uint16)
    name_a, name_b = tensor_names("x")
    write_stored(tmp_path / "x.safetensors", {name_a: (dtype, bits), name_b: (dtype, bits.T)})
    layer = read_lora(tmp_path / "x.safetensors", {"x": (3, 3)})["x"]
    assert layer.a.dtype == layer.b.dtype == np.float32
    assert layer.a.tolist() == values.tolist() and layer.b.tolist() == values.T.tolist()


def test_written_file_has_the_names_and_metadata_of_diffusers(tmp_path):
    layers = random_lora(rank=2, factor=4.0)
    settings = LoRASettings(2, 8.0, 0.1, ("to_q", "to_out.0", "net.0.proj", "net.2", "proj_out"))
    write_lora(tmp_path / LORA_NAME, layers, settings, {"step": "30", "format": "ignored"})
    assert set(load_file(tmp_path / LORA_NAME)) == {name for module in MODULES for name in tensor_names(module)}
    assert tensor_names(Q) == (f"transformer.{Q}.lora_A.weight", f"transformer.{Q}.lora_B.weight")
    with safe_open(tmp_path / LORA_NAME, "np") as file:
        metadata = file.metadata()
    assert metadata == read_metadata(tmp_path / LORA_NAME)
    assert (metadata["format"], metadata["step"]) == ("pt", "30")
    config = json.loads(metadata["lora_adapter_metadata"])
    assert all(key.startswith("transformer.") for key in config)
    assert config["transformer.r"] == 2 and config["transformer.lora_alpha"] == 8
    assert config["transformer.target_modules"] == list(settings.target_modules)
    assert read_settings(tmp_path) == settings
    assert same_layers(read_lora(tmp_path, MODULES), layers)


def test_different_ranks_and_factors_become_patterns(tmp_path):
    layers = {**random_lora(rank=2, factor=2.0), FF: random_lora(rank=3, factor=0.25)[FF]}
    settings = LoRASettings(2, 4.0, target_modules="a regular.*expression", rank_pattern={f"^{FF}": 7})
    write_lora(tmp_path / LORA_NAME, layers, settings)
    assert same_layers(read_lora(tmp_path, MODULES), layers)
    written = read_settings(tmp_path)
    assert written.rank_pattern == {f"^{FF}": 3} and written.alpha_pattern == {f"^{FF}": 0.75}
    assert set(written.target_modules) == set(MODULES)


def test_targets_that_miss_a_layer_are_replaced(tmp_path):
    write_lora(tmp_path / LORA_NAME, random_lora(), LoRASettings(2, 2.0, target_modules=("to_q", "q")))
    assert set(read_settings(tmp_path).target_modules) == set(MODULES)


def test_tensors_are_read_one_at_a_time_while_writing(tmp_path):
    order = []

    class Recorded(ArrayTensor):
        def iter_bytes(self):
            order.append(self.shape)
            return super().iter_bytes()

    layers = random_lora(rank=3)
    pairs = {name: (Recorded(layer.a), Recorded(layer.b)) for name, layer in layers.items()}
    write_lora(tmp_path / LORA_NAME, pairs, LoRASettings(3, 6.0))
    assert order == [shape for height, width in MODULES.values() for shape in ((3, width), (height, 3))]
    expected = {name: LowRank(layer.a, layer.b, 2.0) for name, layer in layers.items()}
    assert same_layers(read_lora(tmp_path, MODULES), expected)
    write_lora(tmp_path / LORA_NAME, {Q: (np.ones((1, 5), np.float16), np.ones((6, 1)))}, LoRASettings(1, 1.0))
    assert {value.dtype for value in load_file(tmp_path / LORA_NAME).values()} == {np.dtype(np.float32)}


def test_nothing_is_written_without_layers(tmp_path):
    with pytest.raises(UserError, match="no layers"):
        write_lora(tmp_path / LORA_NAME, {}, LoRASettings(1, 1.0))
    with pytest.raises(UserError, match="must end in .safetensors"):
        write_lora(tmp_path / "x.bin", random_lora(), LoRASettings(1, 1.0))
    assert not list(tmp_path.iterdir())


def test_lora_is_found_in_folders(tmp_path):
    layers = random_lora()
    for folder, name in (("a", LORA_NAME), ("b/lora", LORA_NAME), ("c", "my.safetensors")):
        write_lora(tmp_path / folder / name, layers, LoRASettings(2, 2.0))
    assert find_lora(tmp_path / "a") == tmp_path / "a" / LORA_NAME
    assert find_lora(tmp_path / "b") == tmp_path / "b/lora" / LORA_NAME
    assert find_lora(tmp_path / "c") == tmp_path / "c/my.safetensors"
    assert find_lora(save_peft(tmp_path / "d", layers)).name == "adapter_model.safetensors"
    write_lora(tmp_path / "c/other.safetensors", layers, LoRASettings(2, 2.0))
    with pytest.raises(UserError, match=r"c holds several files \(my.safetensors, other.safetensors\)"):
        find_lora(tmp_path / "c")
    with pytest.raises(FileNotFoundError, match="no LoRA in this folder"):
        find_lora(tmp_path)
    with pytest.raises(FileNotFoundError, match="none: no such file or folder"):
        find_lora(tmp_path / "none")


@pytest.mark.parametrize("place", ["alpha", "A", "B"])
def test_lora_that_does_nothing_is_reported(tmp_path, capsys, place):
    layers = {
        name: LowRank(layer.a * (place != "A"), layer.b * (place != "B"), float(place != "alpha"))
        for name, layer in random_lora().items()
    }
    write_lora(tmp_path / LORA_NAME, layers, LoRASettings(2, 2.0))
    assert same_layers(read_lora(tmp_path, MODULES), layers)
    assert f"warning: {tmp_path / LORA_NAME}: changes nothing" in capsys.readouterr().err


def test_linear_layers_are_matrices_of_weights():
    shapes = {"a.weight": (3, 2), "a.bias": (3,), "conv.weight": (3, 2, 1, 1), "table": (3, 2), "norm.weight": (3,)}
    assert linear_layers({name: ArrayTensor(np.zeros(shape)) for name, shape in shapes.items()}) == {"a": (3, 2)}
